/* A worker that tells that it is up (its pid, four bytes, into a FIFO) and waits for TERM.
 *
 *   worker FIFO          nothing else
 *   worker FIFO stamp    tells when it came up too: its pid and CLOCK_MONOTONIC in ns, eight bytes each
 *   worker FIFO chatter  first writes 100 lines of 1 KiB, to see what the launcher keeps of them
 *   worker FIFO family   by THRONG_WORKER_ID: 2 leaves an orphan in a session of its own, 3 and
 *                        above have a child in their own group, which does not obey its parent's end
 *   worker FIFO work     uses a little CPU all the time, and memory that it gives back
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void put(const char *fifo, const void *record, ssize_t size)
{
    int fd = open(fifo, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, record, size) != size)
        _exit(70);
    close(fd);
}

static void tell(const char *fifo)
{
    pid_t pid = getpid();
    put(fifo, &pid, sizeof pid);
}

static void stamp(const char *fifo, const struct timespec *now)
{
    int64_t record[2] = {getpid(), now->tv_sec * INT64_C(1000000000) + now->tv_nsec};
    put(fifo, record, sizeof record);
}

static void wait_for_term(void)
{
    for (;;)
        pause();
}

static pid_t begin(void)
{
    pid_t pid = fork();
    if (pid < 0)
        _exit(71);
    return pid;
}

static void family(const char *fifo)
{
    const char *text = getenv("THRONG_WORKER_ID");
    int id = text ? atoi(text) : 0;
    if (id == 2 && begin() == 0) {
        setsid();
        if (begin() == 0) {
            tell(fifo);
            wait_for_term();
        }
        _exit(0);
    }
    if (id >= 3 && begin() == 0) {
        tell(fifo);
        wait_for_term();
    }
}

static void chatter(void)
{
    char line[1024];
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (int i = 0; i < 100; i++)
        if (write(STDOUT_FILENO, line, sizeof line) != sizeof line)
            _exit(72);
}

static void work(void)
{
    const size_t size = 256 << 10;
    for (;;) {
        /* Above the size that malloc takes from the kernel each time. */
        char *memory = malloc(size);
        if (!memory)
            _exit(73);
        for (size_t at = 0; at < size; at += 4096)
            ((volatile char *)memory)[at] = 1;
        free(memory);
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    }
}

int main(int argc, char **argv)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (argc < 2)
        return 64;
    if (argc > 2 && strcmp(argv[2], "stamp") == 0) {
        stamp(argv[1], &now);
        wait_for_term();
    }
    if (argc > 2 && strcmp(argv[2], "family") == 0)
        family(argv[1]);
    if (argc > 2 && strcmp(argv[2], "chatter") == 0)
        chatter();
    tell(argv[1]);
    if (argc > 2 && strcmp(argv[2], "work") == 0)
        work();
    wait_for_term();
}
