"""Programs that try to harm the machine, the next sample, or the verdict. Each defines f(x); its result is compared.

A program is contained when its outcome is the expected one and the good sample after it is as good as the one before.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from trimoe.sandbox import Limits, Outcome

QUICK = Limits(cpu=1, call_cpu=1, idle=3, memory=512 << 20, scratch=8 << 20, files=64, processes=32, output=1 << 20)
PATIENT = replace(QUICK, cpu=30, call_cpu=30, idle=60)  # filling memory is work, and a busy machine does it slowly

# A call that must fail: the name of what it raised, or what it gave.
TRIED = """
import ctypes, errno, os, socket, sys
def tried(call, *args):
    try:
        return call(*args)
    except BaseException as exc:
        return type(exc).__name__
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*args):
    ctypes.set_errno(0)
    result = libc.syscall(*args)
    return errno.errorcode.get(ctypes.get_errno(), 'done') if result < 0 else 'done'
"""


@dataclass(frozen=True)
class Hostile:
    """Source, and what must come of it."""

    name: str
    source: str
    contained: Callable[[Outcome], bool]
    limits: Limits = QUICK


def gives(*values: object) -> Callable[[Outcome], bool]:
    """It ran to its end and got one of these results: nothing it tried worked."""
    return lambda outcome: outcome.status == "ok" and outcome.values()[0] in values


def ends(status: str, *words: str) -> Callable[[Outcome], bool]:
    """It was stopped, or stopped itself, in this way."""
    return lambda outcome: outcome.status == status and (not words or any(word in outcome.detail for word in words))


def body(lines: str) -> str:
    """A program whose f has this body."""
    return TRIED + "def f(x):\n" + "".join(f"    {line}\n" for line in lines.strip("\n").splitlines())


def stopped(outcome: Outcome) -> bool:
    """By whichever limit came first."""
    return outcome.status in ("timeout", "memory", "error")


X86 = __import__("platform").machine() == "x86_64"
N = {
    name: pair[0 if X86 else 1]
    for name, pair in {
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "mount": (165, 40),
        "chroot": (161, 51),
        "unshare": (272, 97),
        "setns": (308, 268),
        "clone3": (435, 435),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "shmget": (29, 194),
        "bpf": (321, 280),
        "userfaultfd": (323, 282),
        "perf_event_open": (298, 241),
        "io_uring_setup": (425, 425),
        "pivot_root": (155, 41),
        "open_by_handle_at": (304, 265),
        "init_module": (175, 105),
        "reboot": (169, 142),
        "clone": (56, 220),
        "unknown": (900, 900),
    }.items()
}

PROGRAMS = [
    Hostile("fork bomb", body("while True: os.fork()"), stopped),
    Hostile(
        "fork bomb that waits",
        body("""
import time
try:
    while True: os.fork()
except BaseException:
    time.sleep(60)
"""),
        stopped,
    ),
    Hostile(
        "threads",
        body("""
import threading, time
made = 0
try:
    for _ in range(10000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        made += 1
except RuntimeError:
    return made < 32
"""),
        gives(True),
    ),
    Hostile(
        "fill the disk",
        body("""
try:
    for i in range(40):
        with open(f'f{i}', 'wb') as h:
            for _ in range(16): h.write(bytes(1 << 20))
except OSError as exc:
    return exc.errno in (errno.ENOSPC, errno.EFBIG) and sum(os.path.getsize(n) for n in os.listdir('.')) <= 8 << 20
"""),
        gives(True),
    ),
    Hostile(
        "exhaust inodes",
        body("""
try:
    for i in range(100000): open(str(i), 'w').close()
except OSError as exc:
    return exc.errno == errno.ENOSPC and i < 64
"""),
        gives(True),
    ),
    Hostile("allocate 10 GB", body("return len(bytearray(10 << 30))"), ends("memory")),
    Hostile(
        "allocate in many processes",
        body("""
import time
for _ in range(12):
    if os.fork() == 0:
        block = bytearray(os.urandom(1 << 20)) * 200
        time.sleep(60)
time.sleep(60)
"""),
        ends("memory"),
        PATIENT,
    ),
    Hostile(
        "shared memory",
        body("""
import mmap, time
blocks = []
for _ in range(64):
    blocks.append(mmap.mmap(-1, 64 << 20))
    blocks[-1].write(bytes(64 << 20))
time.sleep(60)
"""),
        ends("memory"),
        PATIENT,
    ),
    Hostile("read /etc/shadow", body("return tried(open, '/etc/shadow')"), gives("FileNotFoundError")),
    Hostile(
        "read the home directory",
        body("""
seen = []
for home in ('/root', '/home', os.path.expanduser('~nobody')):
    for place, folders, files in os.walk(home):
        seen += [f for f in files if sys.base_prefix not in place]
return seen
"""),
        gives([]),
    ),
    Hostile("read a planted secret", body("return tried(open, '{secret}')"), gives("FileNotFoundError")),
    Hostile("read the tests' checkout", body("return tried(os.listdir, '{checkout}')"), gives("FileNotFoundError")),
    Hostile(
        "connect out", body("return tried(socket.create_connection, ('1.1.1.1', 53), 2)"), gives("PermissionError")
    ),
    Hostile(
        "connect to localhost",
        body("return tried(socket.create_connection, ('127.0.0.1', {port}), 2)"),
        gives("PermissionError"),
    ),
    Hostile(
        "a datagram", body("return tried(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)"), gives("PermissionError")
    ),
    Hostile(
        "raw sockets",
        body("""
return [tried(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1), tried(socket.socket, 17, socket.SOCK_RAW),
        tried(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0), tried(socket.socket, 40, socket.SOCK_STREAM)]
"""),
        gives(["PermissionError"] * 4),
    ),
    Hostile(
        "kill the parent",
        body("""
import signal
for target in (os.getppid(), 1, -1):
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
        tried(os.kill, target, number)
return os.getppid()
"""),
        gives(1),
    ),
    Hostile("kill outside", body("return tried(os.kill, {pid}, 9)"), gives("ProcessLookupError")),
    Hostile("spin", body("while True: pass"), ends("timeout")),
    Hostile(
        "spin with signals ignored",
        body("""
import signal
for number in range(1, 65):
    tried(signal.signal, number, signal.SIG_IGN)
while True: pass
"""),
        ends("timeout"),
    ),
    Hostile(
        "spin in many processes",
        body("""
for _ in range(4): os.fork()
while True: pass
"""),
        ends("timeout"),
    ),
    Hostile("sleep", body("import time; time.sleep(600)"), ends("timeout", "nothing")),
    Hostile(
        "escape by symlink",
        body("""
os.symlink('/', 'up'); os.symlink('/etc/shadow', 'shadow'); os.symlink('/proc/1/root', 'init')
return [tried(open, 'shadow'), tried(open, 'init/etc/shadow'), tried(open, 'up/etc/shadow'),
        tried(open, '../../../../../../etc/shadow'), sorted(os.listdir('..')) == sorted(os.listdir('/'))]
"""),
        gives(["FileNotFoundError", "PermissionError", "FileNotFoundError", "FileNotFoundError", True]),
    ),
    Hostile(
        "ptrace",
        body(f"""
return [syscall({N["ptrace"]}, 16, os.getppid(), 0, 0), syscall({N["ptrace"]}, 0, 0, 0, 0),
        syscall({N["process_vm_readv"]}, os.getppid(), 0, 0, 0, 0, 0)]
"""),
        gives(["EPERM"] * 3),
    ),
    Hostile(
        "write to the package and the system",
        body("""
import numpy
places = (os.__file__, numpy.__file__, '/usr/bin/python3', '/etc/passwd', '/site/x', '/usr/x',
          '/x', '/dev/x', '/dev/null/x')
return [name for name in places if not isinstance(tried(open, name, 'a'), str)]
"""),
        gives([]),
    ),
    Hostile(
        "remove what is there",
        body("""
import shutil
json = os.path.dirname(os.__file__) + '/json'
for place in ('/etc', '/dev', '/site', json, '/usr/bin'): shutil.rmtree(place, ignore_errors=True)
kept = ('/etc/passwd', '/dev/null', '/site/numpy', '/usr/bin/env', json)
return all(map(os.path.exists, kept))
"""),
        gives(True),
    ),
    Hostile(
        "huge output",
        body("""
for _ in range(2000):
    print('x' * 100000); sys.stderr.write('y' * 100000)
return 'printed'
"""),
        gives("printed"),
    ),
    Hostile("huge result", body("return 'x' * (64 << 20)"), ends("error", "bytes of results")),
    Hostile("endless result", body("import itertools; return itertools.count()"), stopped),
    Hostile("nested result", body("a = []\nfor _ in range(100000): a = [a]\nreturn a"), ends("error")),
    Hostile("core dump", body("os.abort()"), ends("error", "SIGABRT")),
    Hostile(
        "core dump limit",
        body("""
import resource
tried(resource.setrlimit, resource.RLIMIT_CORE, (1 << 30, 1 << 30))
return resource.getrlimit(resource.RLIMIT_CORE)
"""),
        gives((0, 0)),
    ),
    Hostile(
        "raise the limits",
        body("""
import resource
kinds = (resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC)
return [tried(resource.setrlimit, kind, (1 << 40, 1 << 40)) for kind in kinds]
"""),
        gives(["ValueError"] * 4),
    ),
    Hostile(
        "proc tricks",
        body("""
return [tried(open, f'/proc/{name}') for name in ('self/mem', '1/environ', 'self/root/etc/shadow', 'sysrq-trigger',
        'sys/kernel/core_pattern', 'kcore')]
"""),
        gives(["PermissionError"] * 6, ["FileNotFoundError"] * 6),
    ),
    Hostile("environment secrets", body("return [n for n in os.environ if 'SECRET' in n or 'TOKEN' in n]"), gives([])),
    Hostile(
        "become root",
        body("""
return [tried(os.setuid, 0), tried(os.setresuid, 0, 0, 0), tried(os.setgid, 0), tried(os.setgroups, [0]), os.getuid()]
"""),
        gives(["PermissionError"] * 4 + [65534]),
    ),
    Hostile(
        "setuid programs",
        body("""
import subprocess
made = subprocess.run(['/bin/sh', '-c', 'cp /usr/bin/id ./id && chmod 4755 ./id && ./id -u'], capture_output=True)
return made.stdout
"""),
        gives(b"65534\n"),
    ),
    Hostile(
        "mount",
        body(f"""
return [syscall({N["mount"]}, b'none', b'/tmp', b'tmpfs', 0, 0), syscall({N["pivot_root"]}, b'.', b'.'),
        tried(os.chroot, '/tmp')]
"""),
        gives(["EPERM", "EPERM", "PermissionError"]),
    ),
    Hostile(
        "unshare",
        body(f"""
return [syscall({N["unshare"]}, 0x10000000), syscall({N["unshare"]}, 0x20000), syscall({N["setns"]}, 0, 0),
        syscall({N["clone"]}, 0x10000011, 0, 0, 0, 0), syscall({N["clone3"]}, 0, 0)]
"""),
        gives(["EPERM"] * 4 + ["ENOSYS"]),
    ),
    Hostile(
        "kernel machinery",
        body(f"""
return [syscall(n, 0, 0, 0, 0, 0) for n in ({N["bpf"]}, {N["userfaultfd"]}, {N["perf_event_open"]},
        {N["io_uring_setup"]}, {N["open_by_handle_at"]}, {N["init_module"]}, {N["reboot"]}, {N["keyctl"]},
        {N["shmget"]}, {N["add_key"]})] + [syscall({N["unknown"]})]
"""),
        gives(["EPERM"] * 10 + ["ENOSYS"]),
    ),
    Hostile("files without a folder", body("return tried(os.memfd_create, 'x')"), gives("PermissionError")),
    Hostile(
        "type into a terminal",
        body("import fcntl; return tried(fcntl.ioctl, 0, 0x5412, b'x')"),
        gives("PermissionError"),
    ),
    Hostile(
        "devices",
        body("""
return [tried(open, '/dev/mem'), tried(open, '/dev/vda'), tried(os.mknod, 'd', 0o60666, os.makedev(8, 0)),
        sorted(os.listdir('/dev'))]
"""),
        gives(
            [
                "FileNotFoundError",
                "FileNotFoundError",
                "PermissionError",
                ["full", "null", "random", "shm", "urandom", "zero"],
            ]
        ),
    ),
    Hostile(
        "background daemon",
        body("""
import time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(64): tried(os.close, fd)
        os.execv('/bin/sleep', ['{mark}', '3600'])
    os._exit(0)
return 'left one behind'
"""),
        gives("left one behind"),
    ),
    Hostile(
        "leave files behind",
        body("""
for place in ('/tmp', '/dev/shm', '/var/tmp', '.'):
    tried(lambda: open(f'{place}/left', 'w').close())
return os.listdir('/tmp')
"""),
        gives(["left"]),
    ),
    Hostile(
        "abstract socket",
        body("""
s = socket.socket(socket.AF_UNIX); s.bind('\\0left'); s.listen()
return 'listening'
"""),
        gives("listening"),
    ),
    Hostile("recursion", body("return f(x)"), ends("error", "RecursionError")),
    Hostile(
        "recursion without a limit",
        body("""
sys.setrecursionlimit(1 << 30)
class A:
    def __getattr__(self, name): return getattr(self, name + 'x')
return A().a
"""),
        stopped,
    ),
    Hostile("crash the interpreter", body("ctypes.string_at(1)"), ends("error", "SIGSEGV")),
    Hostile("leave before the tests", TRIED + "os._exit(0)\ndef f(x): return 2", ends("error", "ended early")),
    Hostile("leave politely", TRIED + "sys.exit(0)\ndef f(x): return 2", ends("error", "SystemExit")),
    Hostile("leave in the call", body("os._exit(0)"), ends("error", "ended early")),
    Hostile("kill itself", body("os.kill(os.getpid(), 9)"), ends("error", "SIGKILL")),
    Hostile("alarm", body("import signal, time; signal.alarm(1); time.sleep(30)"), ends("error", "SIGALRM")),
    Hostile("close everything", body("os.closerange(0, 4096); return 2"), ends("error", "ended early")),
    Hostile("stop itself", body("os.kill(os.getpid(), 19)"), ends("timeout")),
    Hostile(
        "exit handlers",
        body("""
import atexit, threading
atexit.register(lambda: open('/tmp/late', 'w')); threading.Thread(target=lambda: None).start()
return 'registered'
"""),
        gives("registered"),
    ),
    Hostile(
        "break the interpreter's own tools",
        body("""
import json, builtins
json.dumps = json.loads = None
os.write = os._exit = lambda *a: None
builtins.len = builtins.isinstance = builtins.type = lambda *a: True
return 2
"""),
        lambda outcome: outcome.status in ("ok", "error", "timeout"),
    ),
    Hostile(
        "find the harness",
        body("""
import gc
names = [n for n in sys.modules if 'trimoe' in n]
frames = []
frame = sys._getframe()
while frame: frames.append(frame.f_code.co_name); frame = frame.f_back
return [names, any(isinstance(o, str) and '{needle}' in o for o in gc.get_objects())]
"""),
        gives([[], False]),
    ),
]
