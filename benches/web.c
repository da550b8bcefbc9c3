// A small and fast HTTP server, one thread, on 127.0.0.1 at the port that PORT holds (or the first argument). Answers
// every request with one line, or with as many bytes as its path names: GET /1000000.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, ROOM = 4096, PIECE = 1 << 16 };

// What a connection still has to send, and whether it ends then.
struct state { int fd; int last; size_t left, have; char in[ROOM]; };

static char piece[PIECE];
static int poller;

static void end(struct state *state) {
    close(state->fd);
    free(state);
}

// Sends on; 0 where the connection has ended.
static int pour(struct state *state) {
    while (state->left > 0) {
        size_t most = state->left < PIECE ? state->left : PIECE;
        ssize_t sent = send(state->fd, piece, most, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN;
        state->left -= sent;
    }
    return !state->last;
}

// Answers what has come; 0 where the connection has ended.
static int answer(struct state *state) {
    for (;;) {
        if (state->left > 0) return pour(state);
        char *stop = memmem(state->in, state->have, "\r\n\r\n", 4);
        if (!stop) return state->have < ROOM;
        size_t length = stop + 4 - state->in;
        size_t body = strtoul(state->in + 5, NULL, 10);
        state->last = memmem(state->in, length, "Connection: close", 17) != NULL
            || memmem(state->in, length, "HTTP/1.0", 8) != NULL;
        char text[256];
        int size = snprintf(text, sizeof text,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s\r\n%s",
            body ? body : 6, state->last ? "Connection: close\r\n" : "", body ? "" : "hello\n");
        if (send(state->fd, text, size, MSG_NOSIGNAL) != size) return 0;
        state->left = body;
        memmove(state->in, state->in + length, state->have -= length);
        if (!pour(state)) return 0;
        if (state->left > 0) return 1;
    }
}

static void serve(struct state *state, unsigned events) {
    if (state->left > 0 && !pour(state)) return end(state);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t got = recv(state->fd, state->in + state->have, ROOM - state->have, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) return end(state);
    state->have += got;
    if (!answer(state)) end(state);
}

int main(int count, char **words) {
    const char *port = count > 1 ? words[1] : getenv("PORT");
    if (!port) return 2;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(door, (struct sockaddr *)&address, sizeof address) || listen(door, 4096)) return 1;
    memset(piece, 'x', sizeof piece);
    poller = epoll_create1(0);
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = NULL }, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, door, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct state *known = events[i].data.ptr;
            if (known) {
                serve(known, events[i].events);
                continue;
            }
            for (int fd; (fd = accept4(door, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                struct state *fresh = calloc(1, sizeof *fresh);
                fresh->fd = fd;
                event = (struct epoll_event){ .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = fresh };
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
