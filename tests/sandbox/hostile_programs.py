"""Programs that attack the judge, by class: name -> (statuses it may end in, source).

Each defines `f()`; one that returns "escaped" got through. SECRET, FOLDER, PORT, NAMED and JUDGE
stand for a file outside, a folder outside, a listening TCP port, a named socket and the judge's pid.
"""

# ruff: noqa: E501 - a table of programs reads best with one program a line

from __future__ import annotations

from textwrap import dedent

DENIED = ("exception",)
ENDED = ("exception", "exit", "signal", "time_limit", "memory_limit", "output_limit", "tampering")
HARMLESS = ("value", *ENDED)
"""Whatever it ends as, nothing outside may have changed; a wrong value is a wrong answer."""

PROCESSES = {
    "fork": (DENIED, "import os\ndef f():\n os.fork()\n return 'escaped'"),
    "fork bomb": (DENIED, "import os\ndef f():\n while True: os.fork()"),
    "fork bomb that retries": (
        ("time_limit",),
        """
        import os
        def f():
            while True:
                try:
                    if os.fork() == 0: continue
                except OSError:
                    pass
        """,
    ),
    "forkpty": (DENIED, "import os\ndef f():\n os.forkpty()\n return 'escaped'"),
    "vfork by number": (
        HARMLESS,
        "import ctypes\ndef f():\n return 'escaped' if ctypes.CDLL(None).syscall(58) >= 0 else 0",
    ),
    "clone3 by number": (
        HARMLESS,
        "import ctypes\ndef f():\n"
        " return 'escaped' if ctypes.CDLL(None).syscall(435, bytes(88), 88) >= 0 else 0",
    ),
    "subprocess": (
        DENIED,
        "import subprocess\ndef f():\n return subprocess.run(['/bin/echo','x']) and 'escaped'",
    ),
    "os.system": (
        HARMLESS,
        "import os\ndef f():\n return 'escaped' if os.system('touch FOLDER/x') == 0 else 0",
    ),
    "os.popen": (
        HARMLESS,
        "import os\ndef f():\n return 'escaped' if os.popen('id').read() else 0",
    ),
    "posix_spawn": (
        DENIED,
        "import os\ndef f():\n os.posix_spawn('/bin/true',['x'],{})\n return 'escaped'",
    ),
    "exec in place": (DENIED, "import os\ndef f():\n os.execv('/bin/sh',['sh','-c','exit 0'])"),
    "multiprocessing": (
        DENIED,
        "import multiprocessing as m\ndef f():\n p=m.Process(target=print)\n p.start()\n return 'escaped'",
    ),
    "daemon by double fork": (
        DENIED,
        "import os,time\ndef f():\n if os.fork()==0:\n  os.setsid()\n  if os.fork()==0: time.sleep(60)\n return 'escaped'",
    ),
    "new session": (DENIED, "import os\ndef f():\n os.setsid()\n return 'escaped'"),
    "namespaces": (
        HARMLESS,
        "import ctypes\ndef f():\n return 'escaped' if ctypes.CDLL(None).unshare(0x10000000)==0 else 0",
    ),
    "thread bomb": (
        ENDED,
        """
        import threading, time
        threading.stack_size(32768)
        def f():
            while True:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        """,
    ),
    "thread bomb that retries": (
        ENDED,
        """
        import threading, time
        def f():
            while True:
                try:
                    threading.Thread(target=time.sleep, args=(60,)).start()
                except RuntimeError:
                    pass
        """,
    ),
}

SIGNALS = {
    "kill the judge": (DENIED, "import os\ndef f():\n os.kill(JUDGE, 9)\n return 'escaped'"),
    "kill its parent": (DENIED, "import os\ndef f():\n os.kill(os.getppid(), 9)\n return 'escaped'"),
    "kill everything": (DENIED, "import os\ndef f():\n os.kill(-1, 9)\n return 'escaped'"),
    "kill its group": (DENIED, "import os\ndef f():\n os.killpg(0, 9)\n return 'escaped'"),
    "kill by descriptor": (
        DENIED,
        "import os,signal\ndef f():\n signal.pidfd_send_signal(os.pidfd_open(os.getppid()),9)\n return 'escaped'",
    ),
    "kill through a pipe's owner": (
        DENIED,
        """
        import fcntl, os, signal
        def f():
            r, w = os.pipe()
            fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())
            fcntl.fcntl(r, 10, signal.SIGKILL)
            fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
            os.write(w, b"x")
            return "escaped"
        """,
    ),
    "stop itself": (("time_limit",), "import os\ndef f():\n os.kill(os.getpid(), 19)"),
    "kill itself": (("signal",), "import os\ndef f():\n os.kill(os.getpid(), 9)"),
    "abort": (("signal",), "import os\ndef f():\n os.abort()"),
    "segmentation fault": (("signal",), "import ctypes\ndef f():\n ctypes.string_at(0)"),
    "ignore every signal": (
        ("time_limit",),
        """
        import signal
        def f():
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            while True:
                pass
        """,
    ),
    "trace its parent": (
        HARMLESS,
        "import ctypes,os\ndef f():\n return 'escaped' if ctypes.CDLL(None).ptrace(16,os.getppid(),0,0)==0 else 0",
    ),
    "read the judge's memory": (DENIED, "def f():\n open('/proc/JUDGE/mem','rb')\n return 'escaped'"),
    "process_vm_readv": (
        HARMLESS,
        "import ctypes,os\ndef f():\n"
        " return 'escaped' if ctypes.CDLL(None).syscall(310,os.getppid(),bytes(16),1,bytes(16),1,0)>=0 else 0",
    ),
}  # fmt: skip

FILES = {
    "write outside": (DENIED, "def f():\n open('FOLDER/x','w')\n return 'escaped'"),
    "append to a file outside": (DENIED, "def f():\n open('SECRET','a').write('x')\n return 'escaped'"),
    "write beside the scratch folder": (DENIED, "def f():\n open('../x','w')\n return 'escaped'"),
    "rename out of the scratch folder": (
        DENIED,
        "import os\ndef f():\n open('x','w').close()\n os.rename('x','FOLDER/x')\n return 'escaped'",
    ),
    "rename into the scratch folder": (
        DENIED,
        "import os\ndef f():\n os.rename('SECRET','x')\n return 'escaped'",
    ),
    "link in the scratch folder": (
        DENIED,
        "import os\ndef f():\n os.symlink('SECRET','l')\n return open('l').read() and 'escaped'",
    ),
    "hard link in the scratch folder": (
        DENIED,
        "import os\ndef f():\n os.link('SECRET','l')\n return open('l').read() and 'escaped'",
    ),
    "hard link through a descriptor": (
        HARMLESS,
        "import ctypes\ndef f():\n"
        " return 'escaped' if ctypes.CDLL(None).linkat(-100,b'SECRET',-100,b'l',0)==0 else 0",
    ),
    "remove the scratch folder": (
        DENIED,
        "import os\ndef f():\n os.rmdir(os.getcwd())\n return 'escaped'",
    ),
    "device in the scratch folder": (
        DENIED,
        "import os\ndef f():\n os.mknod('d',0o20666,os.makedev(1,1))\n return 'escaped'",
    ),
    "named pipe in the scratch folder": (DENIED, "import os\ndef f():\n os.mkfifo('p')\n return 'escaped'"),
    "run a file of its own": (
        DENIED,
        "import os\ndef f():\n open('x','w').write('#!/bin/sh')\n os.execv('x',['x'])",
    ),
    "one endless file": (
        DENIED,
        "def f():\n with open('x','wb') as file:\n  while True: file.write(bytes(1<<16))",
    ),
    "many full files": (
        (*DENIED, "output_limit"),
        """
        import os
        def f():
            number = 0
            while True:
                number += 1
                with open(str(number), 'wb') as file:
                    file.write(bytes(1 << 20))
        """,
    ),
    "files that are full and nameless": (
        (*DENIED, "time_limit", "output_limit"),
        """
        import os
        def f():
            while True:
                with open('x', 'wb') as file:
                    file.write(bytes(1 << 20))
                os.unlink('x')
        """,
    ),
    "nameless files held by memory": (
        (*DENIED, "signal", "output_limit"),
        """
        import mmap, os
        def f():
            held = []
            while True:
                with open('x', 'w+b') as file:
                    file.truncate(1 << 20)
                    held.append(mmap.mmap(file.fileno(), 0))
                    for place in range(0, 1 << 20, 4096):
                        held[-1][place] = 1
                os.unlink('x')
        """,
    ),
    "many empty files": (
        (*DENIED, "output_limit"),
        "def f():\n for n in range(10 ** 7): open(str(n), 'w').close()",
    ),
    "deep folders that cannot be listed": (
        HARMLESS,
        """
        import os
        def f():
            path = '.'
            for n in range(1000):
                path += '/d'
                os.mkdir(path, 0o300)
                open(path + '/x', 'w').close()
        """,
    ),
    "write to shared memory": (DENIED, "def f():\n open('/dev/shm/x','w')\n return 'escaped'"),
    "read a file outside": (DENIED, "def f():\n return open('SECRET').read() and 'escaped'"),
    "read through /proc/self/root": (DENIED, "def f():\n return open('/proc/self/rootSECRET').read() and 'escaped'"),
    "read the passwords": (DENIED, "def f():\n return open('/etc/passwd').read() and 'escaped'"),
    "read the environment": (
        HARMLESS,
        "import os\ndef f():\n return 'escaped' if len(os.environ) or os.getenv('PATH') else 0",
    ),
    "read the environment of the judge": (DENIED, "def f():\n return open('/proc/JUDGE/environ').read() and 'escaped'"),
    "list processes": (DENIED, "import os\ndef f():\n return os.listdir('/proc') and 'escaped'"),
    "list the folder": (DENIED, "import os\ndef f():\n return os.listdir('FOLDER') and 'escaped'"),
    "remove a file": (DENIED, "import os\ndef f():\n os.unlink('SECRET')\n return 'escaped'"),
    "rename a file": (DENIED, "import os\ndef f():\n os.rename('SECRET','SECRET2')\n return 'escaped'"),
    "link a file": (DENIED, "import os\ndef f():\n os.symlink('SECRET','FOLDER/l')\n return 'escaped'"),
    "make a folder": (DENIED, "import os\ndef f():\n os.mkdir('FOLDER/d')\n return 'escaped'"),
    "change a mode": (DENIED, "import os\ndef f():\n os.chmod('SECRET',0o777)\n return 'escaped'"),
    "cut a file": (DENIED, "import os\ndef f():\n os.truncate('SECRET',0)\n return 'escaped'"),
    "mount": (
        HARMLESS,
        "import ctypes\ndef f():\n"
        " return 'escaped' if ctypes.CDLL(None).mount(b'x',b'/tmp',b'tmpfs',0,b'')==0 else 0",
    ),
    "fill the disk through stdin": (
        DENIED,
        "import os\ndef f():\n while True: os.write(0, bytes(1<<16))",
    ),
    "import the judge": (
        DENIED,
        "def f():\n import sdpo.sandbox.local\n return 'escaped'",
    ),
    "import a package of the judge": (DENIED, "def f():\n import torch\n return 'escaped'"),
    "memory file": (DENIED, "import os\ndef f():\n os.memfd_create('x')\n return 'escaped'"),
    "shared memory segment": (
        HARMLESS,
        "import ctypes\ndef f():\n return 'escaped' if ctypes.CDLL(None).shmget(0,1<<20,0o1600)>=0 else 0",
    ),
}  # fmt: skip

NETWORK = {
    "tcp": (DENIED, "import socket\ndef f():\n socket.create_connection(('127.0.0.1',PORT))\n return 'escaped'"),
    "udp": (DENIED, "import socket\ndef f():\n socket.socket(2,2).sendto(b'x',('127.0.0.1',PORT))\n return 'escaped'"),
    "name lookup": (DENIED, "import socket\ndef f():\n socket.getaddrinfo('example.org',80)\n return 'escaped'"),
    "http": (DENIED, "import urllib.request as u\ndef f():\n u.urlopen('http://127.0.0.1:PORT')\n return 'escaped'"),
    "named socket": (DENIED, "import socket\ndef f():\n socket.socket(1,1).connect('NAMED')\n return 'escaped'"),
    "named socket from a datagram pair": (
        DENIED,
        "import socket\ndef f():\n a,b=socket.socketpair(1,2)\n a.sendto(b'x','NAMED')\n return 'escaped'",
    ),
    "named socket from a stream pair": (
        DENIED,
        "import socket\ndef f():\n a,b=socket.socketpair()\n a.connect('NAMED')\n return 'escaped'",
    ),
    "packet socket": (DENIED, "import socket\ndef f():\n socket.socket(17,3)\n return 'escaped'"),
    "netlink": (DENIED, "import socket\ndef f():\n socket.socket(16,3)\n return 'escaped'"),
}  # fmt: skip

RESOURCES = {
    "endless loop": (("time_limit",), "def f():\n while True: pass"),
    "endless loop in C": (("time_limit",), "def f():\n return sum(iter(int, 1))"),
    "huge power": (("time_limit",), "def f():\n return len(str(3 ** (3 ** 20)))"),
    "slow regular expression": (("time_limit",), "import re\ndef f():\n return re.match('(a+)+$', 'a'*40+'b')"),
    "swallows exceptions": (
        ("time_limit",),
        "def f():\n while True:\n  try:\n   while True: pass\n  except BaseException: pass",
    ),
    "sleep": (("time_limit",), "import time\ndef f():\n time.sleep(60)"),
    "sleep in many threads": (
        ("time_limit",),
        "import threading,time\ndef f():\n"
        " ts=[threading.Thread(target=time.sleep,args=(60,)) for _ in range(8)]\n"
        " [t.start() for t in ts]\n [t.join() for t in ts]",
    ),
    "wait for nothing": (("time_limit",), "import threading\ndef f():\n threading.Event().wait()"),
    "burn in threads": (
        ("time_limit",),
        "import threading,hashlib\ndef g():\n while True: hashlib.sha256(bytes(1<<20))\n"
        "def f():\n for _ in range(8): threading.Thread(target=g).start()\n g()",
    ),
    "loop in __del__": (
        ("time_limit",),
        "class A:\n def __del__(self):\n  while True: pass\ndef f():\n A()\n return 1",
    ),
    "loop in __str__ of an error": (
        ("time_limit",),
        "class E(Exception):\n def __str__(self):\n  while True: pass\ndef f():\n raise E",
    ),
    "loop while compiling": (HARMLESS, "x = " + "(" * 150 + "1" + ")" * 150 + "\ndef f():\n while True: pass"),
    "much memory": (("memory_limit",), "def f():\n return len(bytearray(1 << 40))"),
    "memory bit by bit": (("memory_limit",), "def f():\n x=[]\n while True: x.append(bytearray(1<<20))"),
    "memory by small objects": (("memory_limit", "time_limit"), "def f():\n x=[]\n while True: x=[x,[0]*1000]"),
    "memory by mmap": (("memory_limit",), "import mmap\ndef f():\n x=[]\n while True: x.append(mmap.mmap(-1,1<<26))"),
    "memory, swallowed": (
        ENDED,
        "def f():\n x=[]\n while True:\n  try: x.append(bytearray(1<<24))\n  except MemoryError: pass",
    ),
    "memory by repetition": (("memory_limit",), "def f():\n return len(b'a' * 10 ** 9)"),
    "memory while loading": (("memory_limit",), "x = [0] * 10 ** 9\ndef f():\n return 1"),
    "memory by a pattern's replacement": (
        ("memory_limit",),
        "import re\ndef f():\n return len(re.sub('a', 'b' * 10 ** 6, 'a' * 1000))",
    ),
    "memory by thread stacks": (
        ("memory_limit",),
        "import threading,time\nthreading.stack_size(32 << 20)\ndef f():\n"
        " while True: threading.Thread(target=time.sleep,args=(60,),daemon=True).start()",
    ),
    "memory in C without a look at the answer": (
        ("memory_limit",),
        """
        import ctypes
        malloc = ctypes.CDLL(None).malloc
        malloc.restype = ctypes.c_void_p
        def f():
            while True:
                place = malloc(1 << 20)
                ctypes.memset(place, 1, 1 << 20)
        """,
    ),
    "memory, renamed": (
        ("memory_limit",),
        """
        def f():
            try:
                return len(bytearray(10 ** 9))
            except MemoryError:
                raise ValueError("no")
        """,
    ),
    "endless recursion": (DENIED, "def f():\n return f()"),
    "endless recursion without a limit": (
        ENDED,
        "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n return f()",
    ),
    "endless recursion in C": (
        ENDED,
        "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10**9)\n"
        "@lru_cache(None)\ndef g(n): return g(n+1)\ndef f():\n return g(0)",
    ),
    "endless output": (("output_limit",), "def f():\n while True: print('x'*10000)"),
    "endless output by descriptor": (
        ("output_limit",),
        "import os\ndef f():\n while True: os.write(1, bytes(1<<16))",
    ),
    "endless output to stderr": (
        ("time_limit",),
        "import sys\ndef f():\n while True: sys.stderr.write('x'*10000)",
    ),
    "large value": (("output_limit",), "def f():\n return 'x' * (5 << 20)"),
    "value that refers to itself": (HARMLESS, "def f():\n x=[]\n x.append(x)\n return x"),
    "value that doubles at each level": (
        ("time_limit", "memory_limit"),
        "def f():\n x=[]\n for _ in range(100): x=[x,x]\n return x",
    ),
    "many pipes": (DENIED, "import os\ndef f():\n while True: os.pipe()"),
    "raise its limits": (
        DENIED,
        "import resource\ndef f():\n resource.setrlimit(0,(-1,-1))\n return 'escaped'",
    ),
    "raise its priority": (DENIED, "import os\ndef f():\n os.nice(-5)\n return 'escaped'"),
    "lock memory": (
        HARMLESS,
        "import ctypes\ndef f():\n return 'escaped' if ctypes.CDLL(None).mlockall(3)==0 else 0",
    ),
}  # fmt: skip

FORGERY = {
    "exit 0": (("exit",), "import sys\ndef f():\n sys.exit(0)"),
    "exit 0 at once": (("exit",), "import os\ndef f():\n os._exit(0)"),
    "exit 0 while loading": (("exit",), "import os\nos._exit(0)\ndef f(): return 1"),
    "exit code of a failed lock-down": (("exit",), "import os\ndef f():\n os._exit(70)"),
    "many frames": (
        ("tampering", "value"),
        """
        import json, os, struct
        def f():
            for n in range(5):
                data = json.dumps({"n": n, "v": 1}).encode()
                os.write(41, struct.pack(">I", len(data)) + data)
        """,
    ),
    "frame of a status": (
        ("tampering",),
        "import os,struct\ndef f():\n d=b'{\"n\":0,\"status\":\"value\"}'\n"
        " os.write(41,struct.pack('>I',len(d))+d)\n os._exit(0)",
    ),
    "frame that is no JSON": (("tampering",), "import os\ndef f():\n os.write(41,b'\\0\\0\\0\\4abcd')"),
    "frame of another input": (
        ("tampering",),
        "import os,struct\ndef f():\n d=b'{\"n\":7,\"v\":1}'\n os.write(41,struct.pack('>I',len(d))+d)\n os._exit(0)",
    ),
    "frame of an impossible length": (("tampering",), "import os\ndef f():\n os.write(41,b'\\xff'*4)"),
    "half a frame": (("time_limit",), "import os,time\ndef f():\n os.write(41,b'\\0\\0\\1')\n time.sleep(60)"),
    "flood of bytes": (ENDED, "import os\ndef f():\n while True: os.write(41, b'\\0\\x80\\0\\0' + bytes(1<<16))"),
    "deeply nested frame": (
        ("tampering",),
        "import os,struct\ndef f():\n d=b'{\"n\":0,\"v\":'+b'['*100000+b']'*100000+b'}'\n"
        " d=struct.pack('>I',len(d))+d\n"
        " while d: d=d[os.write(41,d):]\n os._exit(0)",
    ),
    "huge number in a frame": (
        ("tampering",),
        "import os,struct\ndef f():\n d=b'{\"n\":0,\"v\":'+b'9'*1000000+b'}'\n"
        " d=struct.pack('>I',len(d))+d\n while d: d=d[os.write(41,d):]\n os._exit(0)",
    ),
    "set of equal hashes": (
        ("tampering",),
        """
        import os, struct
        def f():
            items = ",".join('{"i": "%x"}' % (k * (2**61 - 1)) for k in range(1, 40000))
            data = ('{"n": 0, "v": {"s": [' + items + ']}}').encode()
            data = struct.pack(">I", len(data)) + data
            while data:
                data = data[os.write(41, data):]
            os._exit(0)
        """,
    ),
    "pickle": (
        ("tampering",),
        "import os,pickle,struct\ndef f():\n d=pickle.dumps(print)\n"
        " os.write(41,struct.pack('>I',len(d))+d)\n os._exit(0)",
    ),
    "closes every descriptor": (("exit",), "import os\ndef f():\n os.closerange(0,256)\n return 1"),
    "closes every descriptor and sleeps": (
        ("time_limit",),
        "import os,time\ndef f():\n os.closerange(0,256)\n time.sleep(60)",
    ),
    "object equal to everything": (
        ("value",),
        "class A:\n def __eq__(self,o): return True\n __hash__=None\ndef f(): return A()",
    ),
    "type with a lying name": (
        (*ENDED, "value"),
        "class M(type):\n __name__=property(lambda c: 1/0)\nclass A(metaclass=M): pass\ndef f(): return A()",
    ),
    "searches frames for answers": (
        ("value",),
        """
        import sys
        def f():
            frame = sys._getframe()
            while frame:
                for scope in (frame.f_locals, frame.f_globals):
                    if "expected" in scope or "should_stop" in scope:
                        return "escaped"
                frame = frame.f_back
        """,
    ),
    "replaces the encoder": (
        ENDED,
        "import json\ndef f():\n json.dumps=lambda *a,**k: 'escaped'\n return 1",
    ),
    "replaces os.write": (ENDED, "import os\nos.write=lambda fd,d: len(d)\ndef f():\n return 1"),
    "two answers from a thread": (
        HARMLESS,
        """
        import os, struct, threading, time
        def late():
            time.sleep(0.05)
            data = b'{"n": 0, "v": 1}'
            while True:
                os.write(41, struct.pack(">I", len(data)) + data)
        threading.Thread(target=late, daemon=True).start()
        def f():
            time.sleep(0.2)
            return 1
        """,
    ),
}  # fmt: skip

CLASSES = {
    "processes": PROCESSES,
    "signals": SIGNALS,
    "files": FILES,
    "network": NETWORK,
    "resources": RESOURCES,
    "forgery": FORGERY,
}
HOSTILE = {
    f"{kind}: {name}": (statuses, dedent(source))
    for kind, programs in CLASSES.items()
    for name, (statuses, source) in programs.items()
}
