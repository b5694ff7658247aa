"""Before nipype is imported, here and in processes that are begun: it shall ask no server.

It would look for its newest version when the first node is made.
"""

import os

os.environ["NIPYPE_NO_ET"] = "1"
