// A client with no library between it and the kernel: each way to a connection, by raw system calls.
//
// paths METHOD IPV4 IPV6 PORT [CGROUP]: does it, prints one line per connection, and keeps what is open until standard
// input ends. A line is `open PID LOCAL PEER SEEN` (getsockname, getpeername, and what the host says it sees as the
// client), `sent`, with the PID where the socket stays connected, or `error NAME`.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#define IS(name) (strcmp(method, name) == 0)

static const char *method, *cgroup;
static struct sockaddr_in v4;
static struct sockaddr_in6 v6, mapped;

static void fail(const char *what) {
    perror(what);
    exit(3);
}

static void must(long rc, const char *what) {
    if (rc < 0) fail(what);
}

static void refused(int code) {
    printf("error %s\n", strerrorname_np(code));
    fflush(stdout);
}

static void shown(const struct sockaddr_storage *a, char *text) {
    char host[INET6_ADDRSTRLEN];
    if (a->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const void *)a;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        sprintf(text, "%s:%d", host, ntohs(in->sin_port));
    } else {
        const struct sockaddr_in6 *in = (const void *)a;
        inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
        sprintf(text, "[%s]:%d", host, ntohs(in->sin6_port));
    }
}

// Says something that is no TLS, and tells what came back.
static void talk(int fd) {
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    char local[80], peer[80], seen[128] = "";
    struct timeval limit = {.tv_sec = 20};
    syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    if (syscall(SYS_write, fd, "who\n", 4) != 4) return refused(errno);
    for (size_t have = 0; have < sizeof seen - 1 && !strchr(seen, '\n');) {
        long n = syscall(SYS_read, fd, seen + have, sizeof seen - 1 - have);
        if (n < 0) return refused(errno);
        if (n == 0) return refused(EPIPE);
        have += n;
    }
    must(syscall(SYS_getsockname, fd, &address, &length), "getsockname");
    shown(&address, local);
    length = sizeof address;
    must(syscall(SYS_getpeername, fd, &address, &length), "getpeername");
    shown(&address, peer);
    printf("open %d %s %s %s", getpid(), local, peer, seen);
    fflush(stdout);
}

static int make(int family, int type, int protocol) {
    int fd = syscall(SYS_socket, family, type, protocol);
    must(fd, "socket");
    return fd;
}

static void set(int fd, int level, int name, int value) {
    must(syscall(SYS_setsockopt, fd, level, name, &value, sizeof value), "setsockopt");
}

#define CONNECT(fd, to) syscall(SYS_connect, fd, &(to), sizeof(to))

static void finish(int fd, long rc) {
    if (rc < 0) refused(errno);
    else talk(fd);
}

static void wait_connected(int fd) {
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    int code = 0;
    socklen_t length = sizeof code;
    if (syscall(SYS_poll, &wait, 1, 20000) != 1) return refused(ETIMEDOUT);
    syscall(SYS_getsockopt, fd, SOL_SOCKET, SO_ERROR, &code, &length);
    if (code) refused(code);
    else talk(fd);
}

static long start(int fd, const void *to, socklen_t length) {
    long rc = syscall(SYS_connect, fd, to, length);
    return rc < 0 && errno == EINPROGRESS ? 0 : rc;
}

// One operation through a ring of its own; its result.
static int ring(struct io_uring_sqe operation) {
    struct io_uring_params p = {0};
    int fd = syscall(SYS_io_uring_setup, 4, &p);
    must(fd, "io_uring_setup");
    size_t sq_size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t cq_size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *sq = mmap(0, sq_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
    char *cq = mmap(0, cq_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqes = mmap(0, p.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE,
                                     MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED) fail("mmap");
    sqes[0] = operation;
    ((unsigned *)(sq + p.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    must(syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, 0, 0), "io_uring_enter");
    int result = ((struct io_uring_cqe *)(cq + p.cq_off.cqes))->res;
    close(fd);
    return result;
}

static long by_ring(long result) {
    errno = result < 0 ? -result : 0;
    return result < 0 ? -1 : 0;
}

static long ring_connect(int fd, const void *to, socklen_t length, int flags) {
    struct io_uring_sqe sqe = {.opcode = IORING_OP_CONNECT, .flags = flags, .fd = fd, .addr = (unsigned long)to, .off = length};
    return by_ring(ring(sqe));
}

static void enter(void) {
    char path[512], pid[32];
    snprintf(path, sizeof path, "%s/cgroup.procs", cgroup);
    int fd = open(path, O_WRONLY);
    must(fd, path);
    int length = sprintf(pid, "%d", getpid());
    must(write(fd, pid, length), "cgroup.procs");
    close(fd);
}

static void tcp(void) {
    int six = strstr(method, "IPv6") != 0;
    int type = SOCK_STREAM | (strstr(method, "non-blocking") ? SOCK_NONBLOCK : 0);
    int fd = make(six || strstr(method, "v4-mapped") ? AF_INET6 : AF_INET, type,
                  strstr(method, "MPTCP") ? IPPROTO_MPTCP : 0);
    const void *to = six ? (void *)&v6 : strstr(method, "v4-mapped") ? (void *)&mapped : (void *)&v4;
    socklen_t length = to == (void *)&v4 ? sizeof v4 : sizeof v6;
    struct sockaddr_in source = v4;
    source.sin_port = 0;
    if (strstr(method, "SO_MARK")) set(fd, SOL_SOCKET, SO_MARK, 0x539);
    if (strstr(method, "SO_BINDTODEVICE"))
        must(syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2), "SO_BINDTODEVICE");
    if (strstr(method, "IP_BIND_ADDRESS_NO_PORT")) set(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1);
    if (strstr(method, "bind")) must(syscall(SYS_bind, fd, &source, sizeof source), "bind");
    if (strstr(method, "TCP_FASTOPEN_CONNECT")) set(fd, SOL_TCP, TCP_FASTOPEN_CONNECT, 1);
    if (strstr(method, "MSG_FASTOPEN"))
        return finish(fd, syscall(SYS_sendto, fd, "early", 5, MSG_FASTOPEN, to, length));
    if (strstr(method, "io_uring"))
        return finish(fd, ring_connect(fd, to, length, strstr(method, "async") ? IOSQE_ASYNC : 0));
    if (type & SOCK_NONBLOCK) {
        if (start(fd, to, length) < 0) return refused(errno);
        return wait_connected(fd);
    }
    if (strstr(method, "AF_UNSPEC")) {
        struct sockaddr none = {.sa_family = AF_UNSPEC};
        must(syscall(SYS_connect, fd, to, length), "first connect");
        must(CONNECT(fd, none), "AF_UNSPEC");
    }
    finish(fd, syscall(SYS_connect, fd, to, length));
}

// Both families at once, as RFC 8305 has it when the first is slow.
static void happy_eyeballs(void) {
    int six = make(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0), four = make(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    long first = start(six, &v6, sizeof v6), second = start(four, &v4, sizeof v4);
    if (first < 0 || second < 0) return refused(errno);
    wait_connected(six);
    wait_connected(four);
}

static void passed(int connect_first) {
    int pair[2];
    must(syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    char data = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&data, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    // The parent stays outside and lets go of the socket once it is sent.
    if (fork()) {
        int fd = make(AF_INET, SOCK_STREAM, 0);
        if (connect_first) must(CONNECT(fd, v4), "connect");
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
        must(syscall(SYS_sendmsg, pair[0], &message, 0), "sendmsg");
        close(fd);
        wait(0);
        exit(0);
    }
    enter();
    must(syscall(SYS_recvmsg, pair[1], &message, 0), "recvmsg");
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    finish(fd, connect_first ? 0 : CONNECT(fd, v4));
}

static void udp(void) {
    int six = strstr(method, "IPv6") != 0;
    int fd = make(six || strstr(method, "v4-mapped") ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
    void *to = six ? (void *)&v6 : strstr(method, "v4-mapped") ? (void *)&mapped : (void *)&v4;
    socklen_t length = to == (void *)&v4 ? sizeof v4 : sizeof v6;
    struct iovec iov = {"quic", 4};
    struct mmsghdr m = {.msg_hdr = {.msg_name = to, .msg_namelen = length, .msg_iov = &iov, .msg_iovlen = 1}};
    long rc;
    if (strstr(method, "sendmmsg")) rc = syscall(SYS_sendmmsg, fd, &m, 1, 0);
    else if (strstr(method, "io_uring")) {
        struct io_uring_sqe sqe = {.opcode = IORING_OP_SENDMSG, .fd = fd, .addr = (unsigned long)&m.msg_hdr, .len = 1};
        rc = by_ring(ring(sqe));
    } else if (strstr(method, "sendmsg")) rc = syscall(SYS_sendmsg, fd, &m.msg_hdr, 0);
    else if (strstr(method, "sendto")) rc = syscall(SYS_sendto, fd, "quic", 4, 0, to, length);
    else rc = syscall(SYS_connect, fd, to, length);
    if (rc == 0 && strstr(method, "before entering")) {
        enter();
        must(syscall(SYS_write, fd, "quic", 4), "write");
        printf("sent %d\n", getpid());
        fflush(stdout);
    } else if (rc < 0) refused(errno);
    else puts("sent"), fflush(stdout);
}

static void raw_sctp(void) {
    int fd = make(AF_INET, SOCK_RAW, IPPROTO_SCTP);
    if (CONNECT(fd, v4) < 0 || syscall(SYS_write, fd, "sctp", 4) != 4) refused(errno);
    else puts("sent"), fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    method = argv[1], cgroup = argc > 5 ? argv[5] : "";
    int port = atoi(argv[4]);
    v4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    v6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(port)};
    inet_pton(AF_INET, argv[2], &v4.sin_addr);
    inet_pton(AF_INET6, argv[3], &v6.sin6_addr);
    mapped = v6;
    memset(&mapped.sin6_addr, 0, 16);
    memset((char *)&mapped.sin6_addr + 10, 0xff, 2);
    memcpy((char *)&mapped.sin6_addr + 12, &v4.sin_addr, 4);

    if (strncmp(method, "UDP", 3) == 0) udp();
    else if (IS("SCTP, raw socket")) raw_sctp();
    else if (strncmp(method, "happy", 5) == 0) happy_eyeballs();
    else if (IS("passed by SCM_RIGHTS")) passed(0);
    else if (IS("connected, then passed by SCM_RIGHTS")) passed(1);
    else if (strstr(method, "before entering")) {
        int fd = make(AF_INET, SOCK_STREAM, strstr(method, "MPTCP") ? IPPROTO_MPTCP : 0);
        int early = strncmp(method, "connected", 9) == 0;
        if (early) must(CONNECT(fd, v4), "connect");
        enter();
        finish(fd, early ? 0 : CONNECT(fd, v4));
    } else tcp();
    char end;
    while (read(0, &end, 1) > 0) {}
    return 0;
}
