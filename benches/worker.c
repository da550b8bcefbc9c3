/* A worker that tells that it is up (its pid, four bytes, into a FIFO) and waits for TERM.
 *
 *   worker FIFO          nothing else
 *   worker FIFO chatter  first writes 100 lines of 1 KiB, to see what the launcher keeps of them
 *   worker FIFO family   by THRONG_WORKER_ID: 2 leaves an orphan in a session of its own, 3 and
 *                        above have a child in their own group, which does not obey its parent's end
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void tell(const char *fifo)
{
    pid_t pid = getpid();
    int fd = open(fifo, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, &pid, sizeof pid) != sizeof pid)
        _exit(70);
    close(fd);
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

int main(int argc, char **argv)
{
    if (argc < 2)
        return 64;
    if (argc > 2 && strcmp(argv[2], "family") == 0)
        family(argv[1]);
    if (argc > 2 && strcmp(argv[2], "chatter") == 0)
        chatter();
    tell(argv[1]);
    wait_for_term();
}
