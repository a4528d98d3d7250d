/* Receives and sends on a socket that does not block, until a deadline. */

#ifndef FAASMOE_SOCKET_H
#define FAASMOE_SOCKET_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>

#include "team.h" /* now_ns */

static inline int64_t deadline_in(double seconds) { return now_ns() + (int64_t)(seconds * 1e9); }

/* Waits until the socket is ready for `events`; returns 0 when the deadline passes first. */
static inline int socket_ready(int fd, short events, int64_t deadline) {
    for (;;) {
        const int64_t left = deadline - now_ns();
        if (left <= 0) return 0;
        struct pollfd poll_fd = {.fd = fd, .events = events};
        const int found = poll(&poll_fd, 1, (int)(left / 1000000) + 1);
        if (found > 0) return 1;
        if (found < 0 && errno != EINTR) return 0;
    }
}

static inline int would_wait(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

/* The number of bytes received, at least 1; 0 when the peer has closed, the connection is broken, or the
 * deadline has passed. */
static inline int64_t socket_receive(int fd, void *place, int64_t room, int64_t deadline) {
    while (socket_ready(fd, POLLIN, deadline)) {
        const ssize_t count = recv(fd, place, (size_t)room, MSG_DONTWAIT);
        if (count >= 0 || !would_wait()) return count > 0 ? count : 0;
    }
    return 0;
}

/* Returns whether all bytes were sent before the deadline. */
static inline int socket_send(int fd, const uint8_t *bytes, int64_t count, int64_t deadline) {
    for (;;) {
        const ssize_t sent = send(fd, bytes, (size_t)count, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && !would_wait()) return 0;
        if (sent > 0) {
            bytes += sent;
            count -= sent;
        }
        if (count == 0) return 1;
        if (!socket_ready(fd, POLLOUT, deadline)) return 0;
    }
}

#endif
