/* The least that answers HTTP: one thread, epoll, a fixed answer to each request whose body has arrived. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROOM (1 << 20)
static const char ANSWER[] = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 68\r\n\r\n"
    "{\"model\":\"m\",\"version\":1,\"id\":\"0123456789abcdef-1\",\"prediction\":0  }";

struct connection { int descriptor; size_t size; char text[ROOM]; };

static size_t whole(const char *text, size_t size) {  /* bytes of the first request, 0 while it is incomplete */
    const char *end = memmem(text, size, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t length = 0, head = end + 4 - text;
    for (const char *line = text; line < end; line = (const char *) memchr(line, '\n', end + 2 - line) + 1)
        if (!strncasecmp(line, "content-length:", 15)) length = strtoul(line + 15, NULL, 10);
    return size >= head + length ? head + length : 0;
}

int main(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, queue = epoll_create1(0);
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof place;
    if (bind(listener, (struct sockaddr *) &place, length) || listen(listener, 1024)) return 1;
    getsockname(listener, (struct sockaddr *) &place, &length);
    printf("%d\n", ntohs(place.sin_port));
    fflush(stdout);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}, ready[64];
    epoll_ctl(queue, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(queue, ready, 64, -1);
        for (int i = 0; i < count; i++) {
            struct connection *peer = ready[i].data.ptr;
            if (!peer) {
                peer = calloc(1, sizeof *peer);
                peer->descriptor = accept(listener, NULL, NULL);
                setsockopt(peer->descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event.data.ptr = peer;
                epoll_ctl(queue, EPOLL_CTL_ADD, peer->descriptor, &event);
                continue;
            }
            ssize_t got = read(peer->descriptor, peer->text + peer->size, ROOM - peer->size);
            if (got <= 0) { close(peer->descriptor); free(peer); continue; }
            peer->size += got;
            for (size_t used; (used = whole(peer->text, peer->size));) {
                if (write(peer->descriptor, ANSWER, sizeof ANSWER - 1) < 0) break;
                memmove(peer->text, peer->text + used, peer->size -= used);
            }
        }
    }
}
