"""Detection and refusal of all host name look-ups and all connections that leave this machine.

In the test process, they are intercepted by Python's audit events; in its child processes, whatever
their language, by a library that is loaded before libc.
"""

import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

LOG = "MRI2PET_LOOKUPS"  # environment variable with the path of the log
SOURCE = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *kind, const char *what) {
    char line[400], command[200] = "?";
    const char *log = getenv("MRI2PET_LOOKUPS");
    int in = open("/proc/self/cmdline", O_RDONLY);
    ssize_t n = in < 0 ? 0 : read(in, command, sizeof command - 1);
    if (in >= 0) close(in);
    for (ssize_t i = 0; i < n; i++) if (command[i] < ' ') command[i] = ' ';
    command[n > 0 ? n : 0] = 0;
    int out = log ? open(log, O_WRONLY | O_APPEND | O_CREAT, 0644) : -1;
    if (out < 0) return;
    int size = snprintf(line, sizeof line, "%s %s by %s\n", kind, what, command);
    if (size > (int)sizeof line - 1) size = sizeof line - 1;
    if (write(out, line, size) < 0) {}
    close(out);
}

static int is_here(const char *name) {
    char address[sizeof(struct in6_addr)];
    return !name || !strcmp(name, "localhost") || inet_pton(AF_INET, name, address) == 1
        || inet_pton(AF_INET6, name, address) == 1;
}

static int leaves(const struct sockaddr *to) {
    char text[INET6_ADDRSTRLEN] = "?";
    if (!to) return 0;
    if (to->sa_family == AF_INET) {
        const struct in_addr *a = &((const struct sockaddr_in *)to)->sin_addr;
        if ((ntohl(a->s_addr) >> 24) == 127 || a->s_addr == 0) return 0;
        inet_ntop(AF_INET, a, text, sizeof text);
    } else if (to->sa_family == AF_INET6) {
        const struct in6_addr *a = &((const struct sockaddr_in6 *)to)->sin6_addr;
        if (IN6_IS_ADDR_LOOPBACK(a) || IN6_IS_ADDR_UNSPECIFIED(a)) return 0;
        if (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127) return 0;
        inet_ntop(AF_INET6, a, text, sizeof text);
    } else return 0;
    note("connect", text);
    errno = ENETUNREACH;
    return 1;
}

#define REAL(name, ...) ((int (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

int getaddrinfo(const char *name, const char *port, const struct addrinfo *hints,
                struct addrinfo **found) {
    if (is_here(name))
        return REAL("getaddrinfo", const char *, const char *, const struct addrinfo *,
                    struct addrinfo **)(name, port, hints, found);
    note("look-up", name);
    return EAI_FAIL;
}
struct hostent *gethostbyname(const char *name) {
    note("look-up", name); h_errno = NO_RECOVERY; return NULL;
}
struct hostent *gethostbyname2(const char *name, int family) {
    note("look-up", name); h_errno = NO_RECOVERY; return NULL;
}
int gethostbyname_r(const char *name, struct hostent *a, char *b, size_t c, struct hostent **found,
                    int *error) {
    note("look-up", name); *found = NULL; *error = NO_RECOVERY; return ENOENT;
}
int connect(int fd, const struct sockaddr *to, socklen_t size) {
    return leaves(to) ? -1 : REAL("connect", int, const struct sockaddr *, socklen_t)(fd, to, size);
}
ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *to,
               socklen_t size) {
    if (leaves(to)) return -1;
    return ((ssize_t (*)(int, const void *, size_t, int, const struct sockaddr *, socklen_t))
            dlsym(RTLD_NEXT, "sendto"))(fd, data, n, flags, to, size);
}
"""


def build(folder):
    """Compile the library; return None if there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source, library = Path(folder, "lookups.c"), Path(folder, "lookups.so")
    source.write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    made = subprocess.run(command, check=False, capture_output=True).returncode == 0
    return library if made else None


def leaves(host):
    """Return whether a host is a name to look up, or the address of another machine."""
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not host or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return True


def _watch(event, args):
    """Refuse and log look-ups and connections of this process."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
        try:
            ipaddress.ip_address(host)
            return  # a numeric address is not looked up
        except ValueError:
            pass
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if leaves(host):
        with Path(os.environ[LOG]).open("a") as log:
            log.write(f"{event} {host} by {' '.join(sys.argv)}\n")
        raise socket.gaierror(socket.EAI_FAIL, "no network in tests")


def guard():
    """Start watching this process and its future children; return the folder of the log."""
    folder = tempfile.TemporaryDirectory(prefix="lookups-")
    os.environ[LOG] = str(Path(folder.name, "seen"))
    library = build(folder.name)
    if library is not None:
        os.environ["LD_PRELOAD"] = str(library)
    sys.addaudithook(_watch)
    return folder


def seen():
    """Return the lines of the log so far."""
    log = Path(os.environ[LOG])
    return log.read_text().splitlines() if log.exists() else []
