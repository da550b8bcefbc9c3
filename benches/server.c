/* A small HTTP server as a worker: it serves the inherited descriptor 3, or PORT on loopback where none is
 * inherited. What it has done survives its death: DIR/SLOT.PID holds two numbers of eight bytes, the
 * connections that it has accepted and those of them that are over.
 *
 * At TERM it accepts no more, ends each connection with the answer to the request that it has, and those
 * that have none at once; and goes when all are gone, as Node and most others do.
 *
 *   server DIR
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MOST 4096

/* Each open connection: how far its request has come, as many of the four bytes that end it. */
static char matched[MOST];
static char is_open[MOST];
static char keep[MOST];
static int connections, stopping, queue;
static volatile uint64_t *counts;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl");
}

static void finish(int fd)
{
    close(fd);
    is_open[fd] = 0;
    connections--;
    counts[1]++;
}

static void answer(int fd)
{
    /* Each answer has the same length, so that ab sees one that is cut. */
    static const char closing[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
    static const char staying[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nok\n";
    int ends = stopping || !keep[fd];
    const char *text = ends ? closing : staying;
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0 || ends)
        finish(fd);
}

static void hear(int fd)
{
    char part[4096];
    ssize_t length = read(fd, part, sizeof part - 1);
    if (length < 0 && errno == EAGAIN)
        return;
    if (length <= 0) {
        finish(fd);
        return;
    }
    part[length] = 0;
    if (strcasestr(part, "keep-alive"))
        keep[fd] = 1;
    for (ssize_t at = 0; at < length; at++) {
        matched[fd] = part[at] == "\r\n\r\n"[(int)matched[fd]] ? matched[fd] + 1 : part[at] == '\r';
        if (matched[fd] == 4) {
            matched[fd] = 0;
            answer(fd);
            return;
        }
    }
}

static int own_listener(void)
{
    const char *port = getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_port = htons(port ? atoi(port) : 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 511))
        fail("listen");
    return fd;
}

static void ready(void)
{
    const char *name = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!name || strlen(name) >= sizeof address.sun_path)
        return;
    strcpy(address.sun_path, name);
    if (name[0] == '@')
        address.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    sendto(fd, "READY=1", 7, 0, (struct sockaddr *)&address,
           offsetof(struct sockaddr_un, sun_path) + strlen(name));
    close(fd);
}

int main(int argc, char **argv)
{
    char path[4096];
    const char *slot = getenv("THRONG_WORKER_ID");
    snprintf(path, sizeof path, "%s/%s.%d", argc > 1 ? argv[1] : ".", slot ? slot : "0", getpid());
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, 16))
        fail(path);
    counts = mmap(NULL, 16, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counts == MAP_FAILED)
        fail("mmap");
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, NULL);
    int signals = signalfd(-1, &term, 0);
    int listener = getenv("LISTEN_FDS") ? 3 : own_listener();
    fcntl(listener, F_SETFL, O_NONBLOCK);
    queue = epoll_create1(0);
    watch(signals);
    watch(listener);
    ready();
    while (!stopping || connections) {
        struct epoll_event events[64];
        int count = epoll_wait(queue, events, 64, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener && !stopping) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (client < 0)
                    continue;
                counts[0]++;
                connections++;
                if (client >= MOST)
                    fail("too many connections");
                is_open[client] = 1;
                matched[client] = keep[client] = 0;
                watch(client);
            } else if (fd == signals && !stopping) {
                stopping = 1;
                epoll_ctl(queue, EPOLL_CTL_DEL, signals, NULL);
                /* Others have the same socket: to close it is not enough to hear no more of it. */
                epoll_ctl(queue, EPOLL_CTL_DEL, listener, NULL);
                close(listener);
                for (int client = 0; client < MOST; client++) {
                    if (!is_open[client])
                        continue;
                    /* A request may have come that was not read yet; a new connection is about to have one. */
                    hear(client);
                    if (is_open[client] && keep[client] && !matched[client])
                        finish(client);
                }
            } else if (fd < MOST && is_open[fd]) {
                hear(fd);
            }
        }
    }
    return 0;
}
