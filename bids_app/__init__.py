"""The BIDS App behind ``mri2pet``.

Importing it disables nipype's version check, in this process and its children: otherwise nipype
would ask a server for its newest version when the first node is made.
"""

import os

os.environ["NIPYPE_NO_ET"] = "1"
