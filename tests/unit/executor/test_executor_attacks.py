"""Each attack runs inside a sandbox only; the ``box`` fixture proves afterwards that nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from executor.cgroup import Cgroup
from executor.cgroup import sweep as sweep_groups
from executor.collect import read_outputs
from executor.docker_sandbox import DockerSandbox
from executor.sandbox import Observers
from executor.workspace import remove_tree, sweep
from schemas.errors import Cancelled, LimitExceeded, SandboxCrashed

pytestmark = [pytest.mark.sandbox, pytest.mark.timeout(60)]
of_bubblewrap = pytest.mark.parametrize("sandbox", ["bubblewrap", "warm"], indirect=True)
of_docker = pytest.mark.parametrize(
    "sandbox", [pytest.param(name, marks=pytest.mark.docker) for name in ("docker", "docker_warm")], indirect=True
)


def code(text: str) -> str:
    return textwrap.dedent(text)


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_host_files_and_homes_are_not_there(box, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    seen = box(
        code(f"""
        import os
        for path in ("/etc/shadow", "/etc/hostname", {str(secret)!r}, {str(Path.home() / ".bashrc")!r},
                     "/proc/1/root/etc/shadow", "/run", "/var", "/sys/fs", "/boot", "/proc/kcore"):
            try:
                seen = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(99)
                if seen and seen != b"sandbox\\n":
                    print("READ", path, seen)
            except OSError:
                pass
        print("done")
        """)
    )
    assert seen.log == "done\n"


def test_only_the_interpreter_and_the_four_packages_are_shown(box):
    seen = box("import os; print(sorted(os.listdir('/opt/modelium')), sorted(os.listdir('/')))")
    assert seen.log.startswith("['analyzer', 'converters', 'executor', 'schemas'] [")
    for absent in ("var", "run", "srv", "boot"):
        assert f"'{absent}'" not in seen.log
    # Of a home only the way to the interpreter is seen, when that lies in one.
    assert box(f"import os; print(os.path.exists({str(Path.home() / '.bashrc')!r}))").log == "False\n"
    checkout = Path(__file__).parents[3]
    assert "False" in box(f"import os; print(os.path.exists({str(checkout / '.git')!r}))").log


def test_the_environment_is_clean(box, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere")
    seen = box(
        code("""
        import os
        print(dict(os.environ))
        try:
            print(open("/proc/1/environ").read())
        except PermissionError:
            pass
        """)
    )
    assert "hunter2" not in seen.log and "LD_LIBRARY_PATH" not in seen.log


def test_no_descriptor_of_the_host_is_inherited(box, tmp_path):
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        seen = box(
            code("""
            import os
            for n in range(1024):
                try:
                    print(os.readlink(f"/proc/self/fd/{n}"))
                except OSError:
                    pass
            """)
        )
    finally:
        os.close(leaked)
    names = seen.log.split()
    assert all(name == "/dev/null" or name.startswith("pipe:") for name in names), names
    assert len(names) == (5 if "MODELIUM_DONE_FD" in box("import os; print(*os.environ)").log else 4)


def test_nothing_but_out_and_tmp_is_writable(box, tmp_path):
    source = tmp_path / "model.bin"
    source.write_bytes(b"model")
    source.chmod(0o666)
    seen = box(
        code("""
        import os
        for folder in ("/", "/usr", "/usr/lib", "/etc", "/dev", "/proc", "/step", "/step/in", "/opt/modelium/schemas",
                       "/root"):
            try:
                os.close(os.open(folder + "/x", os.O_CREAT | os.O_WRONLY))
                print("WROTE", folder)
            except OSError:
                pass
        for path in ("/step/in/model", "/step/step.json", "/proc/sys/kernel/core_pattern", "/proc/self/oom_score_adj_"):
            try:
                open(path, "wb").write(b"changed")
                print("WROTE", path)
            except OSError:
                pass
        open("/step/out/ok", "w").write("1")
        open("/tmp/ok", "w").write("1")
        open("/dev/shm/ok", "w").write("1")
        print(open("/step/in/model").read())
        """),
        inputs={"model": source},
    )
    assert seen.log == "model\n"
    assert (box.out / "ok").read_text() == "1"
    assert source.read_bytes() == b"model"


def test_there_is_no_network_of_any_kind(box):
    seen = box(
        code("""
        import socket
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, 40):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                try:
                    socket.socket(family, kind)
                    print("SOCKET", family, kind)
                except PermissionError:
                    pass
        a, b = socket.socketpair()
        a.send(b"local pairs work")
        print(b.recv(99).decode())
        """)
    )
    assert seen.log == "local pairs work\n"


def test_abstract_sockets_of_the_host_are_out_of_reach(box):
    name = f"\0modelium-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        seen = box(
            code(f"""
            import socket
            try:
                socket.socket(socket.AF_UNIX).connect({name!r})
                print("IN")
            except OSError as error:
                print(error.errno)
            """)
        )
    assert seen.log == "111\n"


def test_the_metadata_address_of_a_cloud_is_out_of_reach(box):
    seen = box(
        code("""
        import socket
        try:
            socket.create_connection(("169.254.169.254", 80), timeout=2)
        except OSError as error:
            print(error.errno)
        """)
    )
    assert seen.log == "1\n"


def test_sockets_of_the_broker_and_the_engine_are_not_there(box, tmp_path):
    runtime = Path(tempfile.mkdtemp(prefix="modelium-"))
    places = [
        str(runtime / "redis.sock"),
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
    ]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(places[0])
        server.listen()
        seen = box(
            code(f"""
            import os, socket
            for place in {places}:
                try:
                    socket.socket(socket.AF_UNIX).connect(place)
                    print("IN", place)
                except FileNotFoundError:
                    pass
            for folder, _, names in os.walk("/"):
                for name in names:
                    if name.endswith(".sock"):
                        print(folder, name)
            """)
        )
    remove_tree(runtime)
    assert seen.log == ""


SYSCALLS = {
    "ptrace": "101, 16, 1, 0, 0",
    "process_vm_readv": "310, 1, 0, 0, 0, 0, 0",
    "mount": "165, 0, 0, 0, 0, 0",
    "umount2": "166, 0, 0",
    "pivot_root": "155, 0, 0",
    "chroot": "161, b'/tmp'",
    "fsopen": "430, b'tmpfs', 0",
    "open_tree": "428, -100, b'/', 0",
    "unshare": "272, 0x10000000",
    "setns": "308, 0, 0",
    "clone with CLONE_NEWUSER": "56, 0x10000011, 0, 0, 0, 0",
    "keyctl": "250, 0, 0",
    "add_key": "248, b'user', b'x', b'y', 1, -2",
    "bpf": "321, 0, 0, 0",
    "perf_event_open": "298, 0, 0, 0, 0, 0",
    "request_key": "249, b'user', b'x', 0, 0",
    "io_uring_setup": "425, 1, 0",
    "io_uring_enter": "426, 0, 1, 0, 0, 0, 0",
    "io_uring_register": "427, 0, 0, 0, 0",
    "mount_setattr": "442, -100, b'/', 0, 0, 0",
    "move_mount": "429, -100, b'/', -100, b'/tmp', 0",
    "userfaultfd": "323, 0",
    "personality": "135, 0x0040000",
    "kexec_load": "246, 0, 0, 0, 0",
    "init_module": "175, 0, 0, 0",
    "finit_module": "313, 0, 0, 0",
    "name_to_handle_at": "303, -100, b'/', 0, 0, 0",
    "open_by_handle_at": "304, 0, 0, 0",
    "mknod": "133, b'/tmp/dev', 0o60666, 0x700",
    "syslog": "103, 2, 0, 0",
    "seccomp": "317, 0, 0, 0",
    "TIOCSTI": "16, 0, 0x5412, b'x'",
    "prctl(PR_SET_MM)": "157, 35, 0, 0, 0, 0",
    "swapon": "167, b'/tmp/x', 0",
    "reboot": "169, 0, 0, 0, 0",
    "clock_settime": "227, 0, 0",
    "quotactl": "179, 0, 0, 0, 0",
    "pidfd_getfd": "438, 0, 0, 0",
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86-64")
def test_dangerous_system_calls_are_refused(box):
    # The uid owns nothing, so most would fail anyway: EPERM from the filter must come before any other errno.
    calls = "\n".join(f"call({name!r}, {arguments})" for name, arguments in SYSCALLS.items())
    seen = box(
        code("""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        def call(name, *arguments):
            ctypes.set_errno(0)
            result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
            if (result, ctypes.get_errno()) != (-1, 1):
                print(name, result, ctypes.get_errno())
        """)
        + calls
    )
    assert seen.log == "" and seen.exit_code == 0


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86-64")
def test_a_step_gives_up_what_landlock_can_take_from_it(box):
    ending = box(
        code("""
        import os, socket, sys
        sys.path.insert(0, "/opt/modelium")
        from pathlib import Path
        from executor import landlock
        known = landlock.version()
        open("/tmp/mine", "w").close()
        assert landlock.restrict([Path("/step/out")]) == known
        open("/step/out/x", "w").close()
        os.rename("/step/out/x", "/step/out/y")
        tried = {
            "write": lambda: open("/tmp/other", "w"),
            "truncate": lambda: os.truncate("/tmp/mine", 0),
            "unlink": lambda: os.unlink("/tmp/mine"),
            "link": lambda: os.symlink("/step", "/tmp/link"),
            "outwards": lambda: os.rename("/step/out/y", "/tmp/y"),
            "signal": lambda: os.kill(1, 0),
        }
        held = []
        for name, attempt in tried.items():
            try:
                attempt()
            except OSError:
                held.append(name)
        print("KNOWN" if known else "NONE", *held)
    """)
    )
    told = ending.log.split()
    if told == ["NONE"]:
        pytest.skip("this kernel has no Landlock")
    assert told[0] == "KNOWN", ending.log
    assert {"write", "truncate", "unlink", "link", "outwards"} <= set(told), ending.log


def test_clone3_which_a_filter_cannot_inspect_is_not_there(box):
    seen = box(
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.syscall(435, 0, 0), ctypes.get_errno())"
    )
    assert seen.log == "-1 38\n"


def test_it_cannot_become_another_user_or_gain_capabilities(box):
    seen = box(
        code("""
        import os, subprocess
        for change in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0])):
            try:
                change()
                print("CHANGED")
            except OSError:
                pass
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print([int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")])
        print(status["NoNewPrivs"].strip())
        print(os.getuid(), os.getgid(), os.getgroups() in ([], [65534]))
        """)
    )
    assert seen.log == "[0, 0, 0, 0, 0]\n1\n65534 65534 True\n"


def test_threads_processes_and_spawned_workers_work(box):
    seen = box(
        code("""
        import subprocess, sys, threading
        threads = [threading.Thread(target=print, args=("thread",)) for _ in range(1)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(subprocess.check_output([sys.executable, "-I", "-S", "-c", "print('process')"], text=True).strip())
        import multiprocessing
        lock = multiprocessing.get_context("spawn").Lock()
        with lock:
            print("semaphore")
        """)
    )
    assert seen.log == "thread\nprocess\nsemaphore\n", seen.log


def test_a_fork_bomb_stops_at_the_limit_of_processes(box):
    seen = box(
        code("""
        import os, time
        made = 0
        while made < 500:
            try:
                if os.fork() == 0:
                    time.sleep(60)
            except OSError:
                break
            made += 1
        print(made)
        os._exit(0)
        """)
    )
    assert int(seen.log) <= box.limits.processes + 2


def test_a_memory_bomb_is_a_limit_with_its_numbers(box):
    seen = box("x = []\nwhile True: x.append(b'x' * (16 << 20))")
    assert isinstance(seen.error, LimitExceeded)
    assert seen.error.facts["limit"] == box.limits.memory_bytes
    assert seen.error.facts["actual"] >= box.limits.memory_bytes
    assert seen.wall_s < 15


def test_memory_shared_out_to_many_children_is_the_same_limit(box):
    seen = box(
        code("""
        import os, time
        for _ in range(12):
            if os.fork() == 0:
                x = b"x" * (48 << 20)
                time.sleep(30)
                os._exit(0)
        time.sleep(30)
        """)
    )
    assert isinstance(seen.error, LimitExceeded) and seen.error.facts["limit"] == box.limits.memory_bytes
    assert seen.wall_s < 15


@pytest.fixture
def no_cgroup(box, seats, monkeypatch):
    """As on a machine where this user may make no control group."""
    seats()
    monkeypatch.setattr("executor.bwrap_sandbox.Cgroup.create", lambda limits=None: Cgroup("", {}))
    box("pass")  # takes the child that waited in its group
    seats()


@of_bubblewrap
def test_without_a_control_group_a_memory_bomb_in_many_processes_is_a_limit(box, no_cgroup):
    seen = box(
        code("""
        import os, time
        for _ in range(5):
            if os.fork() == 0:
                held = b"x" * (100 << 20)
                time.sleep(30)
        time.sleep(30)
        """)
    )
    assert isinstance(seen.error, LimitExceeded) and seen.error.facts["limit"] == box.limits.memory_bytes


@of_bubblewrap
def test_without_a_control_group_memory_files_that_nobody_maps_count(box, no_cgroup):
    seen = box(
        code("""
        import os, time
        held = []
        for number in range(40):
            held.append(os.memfd_create(str(number)))
            os.write(held[-1], bytes(15 << 20))
        time.sleep(30)
        """)
    )
    assert isinstance(seen.error, LimitExceeded) and seen.wall_s < 10


@of_bubblewrap
def test_without_a_control_group_a_machine_short_of_memory_ends_the_step(box, no_cgroup, monkeypatch):
    monkeypatch.setattr("executor.supervise._RESERVE_BYTES", 1 << 60)
    seen = box("import time; time.sleep(30)")
    assert isinstance(seen.error, LimitExceeded) and "memory left" in str(seen.error)


@of_bubblewrap
def test_without_a_control_group_a_fork_bomb_stops_at_the_limit_of_processes(box, no_cgroup):
    seen = box(
        code("""
        import os, time
        children = 0
        try:
            while children < 500:
                if os.fork() == 0:
                    time.sleep(30)
                children += 1
            time.sleep(30)
        except OSError:
            print(children)
        """)
    )
    if seen.error is None:
        assert 0 < int(seen.log) <= box.limits.processes
    else:  # the machine's root without other users: the kernel bounds nothing for it
        assert isinstance(seen.error, LimitExceeded) and seen.error.facts["limit"] == box.limits.processes
        assert "processes and threads" in str(seen.error) and seen.wall_s < 15


_IN_A_USER_NAMESPACE = """
    import json, sys, tempfile
    from pathlib import Path

    import executor.cgroup
    from executor import find_sandbox
    from executor.sandbox import Command
    from executor.warm_bounds import WarmBounds
    from schemas.step_run import Limits

    executor.cgroup._hierarchies = dict
    warm = sys.argv[1] == "warm"
    sandbox = find_sandbox(warm=WarmBounds() if warm else None)
    limits = Limits(memory_bytes=256 << 20, processes=32, timeout_s=20)
    python, bomb = Path(sys.executable), sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        argv = (str(python), "-c", bomb)
        ending = sandbox.execute(Command(argv, Path(folder), python, limits, warm="bare" if warm else None))
    isolation = ending.warm or sandbox.isolation(limits)
    error = ending.error and [type(ending.error).__name__, ending.error.facts["limit"], str(ending.error)]
    print(json.dumps([ending.warm is not None, isolation.processes, error, ending.log]))
"""


@pytest.mark.parametrize("sandbox", ["bubblewrap", "warm"])
def test_the_root_of_a_user_namespace_has_its_processes_bounded_as_its_isolation_says(sandbox):
    unshare = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this kernel lets nobody make user namespaces")
    bomb = code("""
        import os, time
        for made in range(500):
            try:
                if os.fork() == 0:
                    time.sleep(30)
            except OSError:
                print(made)
                os._exit(0)
        time.sleep(30)
        """)
    done = subprocess.run(
        [*unshare, sys.executable, "-P", "-c", code(_IN_A_USER_NAMESPACE), sandbox, bomb],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    warm, processes, error, log = json.loads(done.stdout)
    assert warm == (sandbox == "warm"), done.stderr
    if os.geteuid() == 0:  # outside it is the machine's root still
        assert processes == "watched" and error[:2] == ["LimitExceeded", 32] and "processes" in error[2], done.stdout
    else:
        assert processes == "rlimit" and error is None and 0 < int(log) <= 32, done.stdout


def test_filling_the_temporary_file_systems_takes_no_more_than_their_size(box):
    seen = box(
        code("""
        import os
        for path in ("/tmp/x", "/dev/shm/x"):
            size = 0
            try:
                with open(path, "wb", buffering=0) as f:
                    while True:
                        size += f.write(b"x" * (1 << 20))
            except OSError as error:
                print(error.errno, size >> 20)
            os.unlink(path)
        """),
        workspace_bytes=1 << 30,
    )
    assert seen.log == "28 64\n28 64\n"


def test_a_detached_child_does_not_outlive_its_parent(box):
    began = time.monotonic()
    seen = box(
        code("""
        import os, signal, time
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.close(0); os.close(1); os.close(2)
                time.sleep(60)
            os._exit(0)
        """)
    )
    assert seen.exit_code == 0 and seen.error is None
    assert time.monotonic() - began < 5


def test_sleeping_for_ever_ends_at_the_time_limit(box):
    seen = box("import time\nprint('asleep')\ntime.sleep(1000)", timeout_s=0.5)
    assert isinstance(seen.error, LimitExceeded) and seen.error.facts["limit"] == 0.5
    assert "0.5 s" in str(seen.error) and seen.log == "asleep\n"
    assert 0.5 <= seen.wall_s < 2


def test_a_cpu_hog_gets_no_more_than_its_share(box):
    if box.sandbox.isolation(box.limits).cpu == "rlimit":
        pytest.skip("no CPU cgroup here")
    seen = box(
        "import os, time\n[os.fork() for _ in range(2)]\nend = time.time() + 1.5\nwhile time.time() < end: pass",
        cpus=0.5,
    )
    assert seen.cpu_s < 0.5 * seen.wall_s * 1.5


def test_a_full_disk_is_a_limit(box):
    seen = box(
        code("""
        n = 0
        while True:
            n += 1
            with open(f"/step/out/{n}", "wb") as f:
                f.write(b"x" * (4 << 20))
        """)
    )
    assert isinstance(seen.error, LimitExceeded) and seen.error.facts["limit"] == box.limits.workspace_bytes


def test_deleted_files_that_are_still_open_count(box):
    seen = box(
        code("""
        import os, time
        files = []
        for n in range(8):
            files.append(open(f"/step/out/{n}", "wb"))
            os.unlink(f"/step/out/{n}")
            files[-1].write(b"x" * (8 << 20))
        time.sleep(10)
        """)
    )
    assert isinstance(seen.error, LimitExceeded) and seen.error.facts["limit"] == box.limits.workspace_bytes


def test_one_file_is_not_larger_than_the_workspace_may_be(box):
    seen = box(
        code("""
        try:
            open("/step/out/x", "wb").truncate(1 << 40)
        except OSError as error:
            print(error.errno)
        """)
    )
    assert seen.log == "27\n"


@pytest.mark.parametrize("make", ["open(f'/step/out/{n}', 'w').close()", "os.mkdir(f'/step/out/{n}')"])
def test_a_flood_of_files_is_a_limit(box, make):
    seen = box(f"import os\nfor n in range(1_000_000): {make}")
    assert isinstance(seen.error, LimitExceeded) and seen.error.facts["limit"] == box.limits.workspace_files


def test_folders_deeper_than_any_path_are_a_limit_and_are_removed(box):
    seen = box(
        code("""
        import os
        os.chdir("/step/out")
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
        open("f", "w").close()
        """),
        workspace_files=20_000,
    )
    assert isinstance(seen.error, LimitExceeded)
    remove_tree(box.workspace)
    assert not box.workspace.exists()


def test_a_closed_folder_is_removed_all_the_same(box):
    box(
        code("""
        import os
        os.makedirs("/step/out/a/b")
        open("/step/out/a/b/f", "w").close()
        os.chmod("/step/out/a/b", 0)
        os.chmod("/step/out/a", 0)
        """)
    )
    remove_tree(box.workspace)
    assert not box.workspace.exists()


def test_a_huge_log_is_cut_and_says_so(box):
    heard = []
    seen = box("import os\nfor _ in range(2000): os.write(1, b'x' * 65536)", Observers(on_log=heard.append))
    assert seen.error is None and len(seen.log) < box.limits.log_bytes + 200
    assert "The log was cut" in seen.log and "".join(heard) == seen.log


def test_a_log_without_end_takes_no_room_and_ends_at_the_time_limit(box):
    seen = box("import os\nwhile True: os.write(1, b'x' * (1 << 20))", timeout_s=2)
    assert isinstance(seen.error, LimitExceeded) and seen.error.facts["limit"] == 2
    assert len(seen.log) < box.limits.log_bytes + 200 and seen.wall_s < 15


def test_terminal_escapes_do_not_reach_the_log(box):
    seen = box("print('\\x1b[2J\\x1b]0;owned\\x07\\x9b1mplain\\u202e')")
    assert "plain" in seen.log and not any(c in seen.log for c in "\x1b\x07\x9b\u202e")


def test_forged_progress_is_ignored(box):
    heard = []
    seen = box(
        code("""
        import os
        fd = int(os.environ["MODELIUM_PROGRESS_FD"])
        for line in (b"not json", b"[]", b'{"fraction": 7, "message": "x"}', b'{"fraction": NaN, "message": "x"}',
                     b'{"fraction": true, "message": "x"}', b'{"fraction": 0.5}', b'{"fraction": 0.5, "message": 1}',
                     b'{"fraction": 0.5, "message": "x", "extra": 1}', b"[" * 100_000, b"x" * 1_000_000,
                     b'{"fraction": 0.5, "message": "\\\\u001b[2Jhalf' + b"!" * 1000 + b'"}', b"trailing"):
            os.write(fd, line + b"\\n")
        """),
        Observers(on_progress=lambda fraction, message: heard.append((fraction, message))),
    )
    assert seen.exit_code == 0, seen.log
    [(fraction, message)] = heard
    assert fraction == 0.5 and "half!!" in message and "\x1b" not in message and len(message) <= 200


def test_a_flood_of_progress_is_heard_ten_times_a_second(box):
    heard = []
    seen = box(
        "import os, time\nfd = int(os.environ['MODELIUM_PROGRESS_FD'])\nend = time.time() + 1\n"
        'while time.time() < end: os.write(fd, b\'{"fraction": 0.5, "message": "x"}\\n\')',
        Observers(on_progress=lambda fraction, message: heard.append(fraction)),
    )
    assert seen.error is None and 1 <= len(heard) <= 15


def test_a_crash_of_the_interpreter_is_seen_as_its_signal(box):
    seen = box("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert seen.exit_code == 128 + signal.SIGSEGV and seen.error is None


def test_process_one_is_out_of_its_reach(box):
    # Process 1 ignores what its own namespace sends it.
    seen = box("import os, signal\ntry: os.kill(1, signal.SIGKILL)\nexcept PermissionError: print('no')")
    assert seen.log in ("no\n", "")


@of_bubblewrap
def test_process_one_shows_nothing_of_itself(box):
    seen = box(
        code("""
        import os
        print(os.listdir("/proc/1"))
        for name in ("mem", "environ", "maps", "task/1/mem", "fd", "root"):
            print(os.path.exists("/proc/1/" + name))
        """)
    )
    assert seen.log.split() == ["[]", *["False"] * 6]


@of_docker
def test_process_one_has_no_right_that_the_program_lacks(box):
    # It has the same user: whoever writes into its memory becomes it, and gains nothing.
    seen = box(
        code("""
        def rights(pid):
            told = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status"))
            names = ("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
            files = [open(f"/proc/{pid}/{name}").read() for name in ("limits", "cgroup")]
            return [told[name] for name in names], files
        print(rights(1) == rights("self"))
        """)
    )
    assert seen.log == "True\n"


WRITTEN = {
    "link to a file": "os.symlink('/etc/passwd', 'x')",
    "link to a folder": "os.symlink('/', 'x')",
    "link below": "os.mkdir('x'); os.symlink('/etc/passwd', 'x/y')",
    "link on the way": "os.symlink('/etc', 'x')",
    "hard link": "open('y', 'w').close(); os.link('y', 'x')",
    "socket": "socket.socket(socket.AF_UNIX).bind('x')",
    "nothing": "",
}
NAMED = {"link on the way": "x/passwd"}


@pytest.mark.parametrize("what", WRITTEN)
def test_what_is_no_plain_file_is_never_an_output(box, what):
    seen = box(f"import os, socket\nos.chdir('/step/out')\n{WRITTEN[what]}\nprint('written')")
    assert seen.log == "written\n"
    for path in (NAMED.get(what, "x"), "../step.json", "/etc/passwd", "x/../../step.json"):
        with pytest.raises(SandboxCrashed):
            read_outputs(box.out, {"model": path}, box.limits)


def test_pipes_devices_and_links_to_inputs_cannot_be_made(box, tmp_path):
    (tmp_path / "model").write_bytes(b"model")
    seen = box(
        code("""
        import os, stat
        os.chdir("/step/out")
        for make in (lambda: os.mkfifo("p"), lambda: os.mknod("d", stat.S_IFBLK | 0o666, os.makedev(7, 0)),
                     lambda: os.link("/step/in/model", "m")):
            try:
                make()
                print("MADE")
            except OSError:
                pass
        """),
        inputs={"model": tmp_path / "model"},
    )
    assert seen.log == "" and list(box.out.iterdir()) == []


def test_usage_is_counted_by_the_host(box):
    seen = box(
        code("""
        import time
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        x = b"x" * (64 << 20)
        time.sleep(0.3)
        """)
    )
    assert 0.3 <= seen.cpu_s < 1.5
    assert 64 << 20 <= seen.peak_memory_bytes < 128 << 20


def test_asking_to_stop_ends_it_at_once(box):
    began = time.monotonic()
    seen = box("import time\ntime.sleep(60)", Observers(should_stop=lambda: time.monotonic() - began > 0.3))
    assert isinstance(seen.error, Cancelled) and seen.wall_s < 2


def test_an_exception_in_the_owner_leaves_nothing(box):
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        box("import time\nprint('x')\ntime.sleep(60)", Observers(on_log=interrupt))


def test_two_sandboxes_do_not_see_each_other(box):
    seen = box("import os; print([p for p in os.listdir('/proc') if p.isdigit()])")
    assert len(seen.log.split(",")) <= 3


def test_killing_the_owner_kills_the_sandbox_and_its_leftovers_are_swept(box, tmp_path, request):
    host = request.getfixturevalue("docker_engine").host if box.sandbox.name == "docker" else ""
    owner = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            code(f"""
            import sys
            from pathlib import Path
            from executor import find_sandbox
            from executor.find import DockerOptions
            from executor.sandbox import Command, Observers
            from executor.warm_bounds import WarmBounds
            from executor.workspace import Workspace
            from schemas.step_run import Limits
            folder = Workspace(Path({str(tmp_path)!r}) / "workspaces")
            inside = "import os, time; os.fork() or os.write(1, bytes([117, 112, 10])); time.sleep(60)"
            argv = (sys.executable, "-I", "-S", "-u", "-c", inside)
            command = Command(argv, folder.path, Path(sys.executable), Limits(), {{}}, {{"MARK": {box.mark!r}}},
                              warm={box.warm!r})
            warm = WarmBounds() if {box.warm!r} else None
            sandbox = find_sandbox(backend={box.sandbox.name!r}, docker=DockerOptions({host!r}), warm=warm)
            if {bool(box.warm and not box.is_forked)}:
                sandbox.await_warm(command)
            sandbox.execute(command, Observers(on_log=lambda text: print(text, flush=True)))
            """),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert owner.stdout is not None and owner.stdout.readline() == "up\n"
    started = psutil.Process(owner.pid).children(recursive=True)
    assert bool(box.warm_children(owner.pid)) == box.is_forked
    assert box.is_forked or box.processes_left()
    assert sweep(tmp_path / "workspaces") == 0  # its owner lives
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while (any(map(runs, started)) or box.processes_left()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(runs, started)) and box.processes_left() == []
    assert sweep(tmp_path / "workspaces") == (2 if box.warm and host else 1)  # a container that waited has its own
    sweep_groups()
    assert box.groups_of(owner.pid) == []
    if host:
        DockerSandbox(host).carried("torch")  # as every process does once, before its first container
