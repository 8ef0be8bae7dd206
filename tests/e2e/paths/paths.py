# As paths.c, by Python's standard library.
import asyncio, ctypes, errno, os, select, socket, sys

method, v4, v6, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
IP_BIND_ADDRESS_NO_PORT, TCP_FASTOPEN_CONNECT, MSG_FASTOPEN, IPPROTO_MPTCP = 24, 30, 0x20000000, 262


def text(address):
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def refused(code):
    print("error", errno.errorcode[code], flush=True)


def talk(stream):
    stream.settimeout(20)
    stream.sendall(b"who\n")
    seen = b""
    while not seen.endswith(b"\n"):
        piece = stream.recv(128)
        if not piece:
            return refused(errno.EPIPE)
        seen += piece
    print("open", os.getpid(), text(stream.getsockname()), text(stream.getpeername()), seen.decode(), end="", flush=True)


def enter():
    with open(sys.argv[5] + "/cgroup.procs", "w") as procs:
        procs.write(str(os.getpid()))


def passed(connected):
    ours, theirs = socket.socketpair()
    if os.fork():
        with socket.socket() as stream:
            if connected:
                stream.connect((v4, port))
            socket.send_fds(ours, [b"x"], [stream.fileno()])
        os.wait()
        sys.exit(0)
    enter()
    stream = socket.socket(fileno=socket.recv_fds(theirs, 1, 1)[1][0])
    if not connected:
        stream.connect((v4, port))
    return stream


async def race():
    # The loop asks for the addresses of a name; they are known here.
    async def both(*_, **__):
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (v6, port, 0, 0)), (socket.AF_INET, socket.SOCK_STREAM, 6, "", (v4, port))]

    loop = asyncio.get_running_loop()
    loop.getaddrinfo = both
    transport, _ = await loop.create_connection(asyncio.Protocol, "both.example", port, happy_eyeballs_delay=0.001)
    return socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))


def tcp():
    six = "IPv6" in method
    mapped = "v4-mapped" in method
    to = (v6, port) if six else ("::ffff:" + v4, port) if mapped else (v4, port)
    stream = socket.socket(socket.AF_INET6 if six or mapped else socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP if "MPTCP" in method else 0)
    if "SO_MARK" in method:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0x539)
    if "SO_BINDTODEVICE" in method:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    if "IP_BIND_ADDRESS_NO_PORT" in method:
        stream.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    if "bind" in method:
        stream.bind((v4, 0))
    if "TCP_FASTOPEN_CONNECT" in method:
        stream.setsockopt(socket.SOL_TCP, TCP_FASTOPEN_CONNECT, 1)
    if "MSG_FASTOPEN" in method:
        stream.sendto(b"early", MSG_FASTOPEN, to)
        return stream
    if "non-blocking" in method:
        stream.setblocking(False)
        code = stream.connect_ex(to)
        if code == errno.EINPROGRESS:
            select.select([], [stream], [], 20)
            code = stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        return stream
    stream.connect(to)
    if "AF_UNSPEC" in method:
        assert ctypes.CDLL(None).connect(stream.fileno(), bytes(16), 16) == 0
        stream.connect(to)
    return stream


def udp():
    six = "IPv6" in method
    stream = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    to = (v6 if six else v4, port)
    if "sendmsg" in method:
        stream.sendmsg([b"quic"], [], 0, to)
    elif "sendto" in method:
        stream.sendto(b"quic", to)
    else:
        stream.connect(to)
        if "before entering" in method:
            enter()
            stream.send(b"quic")
            print("sent", os.getpid(), flush=True)
            return stream
    print("sent", flush=True)


try:
    if method.startswith("UDP"):
        kept = udp()
    elif method.startswith("happy"):
        kept = asyncio.run(race())
        talk(kept)
    elif "SCM_RIGHTS" in method:
        kept = passed(method.startswith("connected"))
        talk(kept)
    elif "entering the cgroup" in method:
        early = socket.socket()
        if method.startswith("connected"):
            early.connect((v4, port))
        enter()
        if method.startswith("made"):
            early.connect((v4, port))
        talk(early)
    else:
        kept = tcp()
        talk(kept)
except OSError as error:
    refused(error.errno)
sys.stdin.read()
