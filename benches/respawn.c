/* The least that a supervisor can do, as a peer to compare with: starts a program N times, and again
 * whenever one has ended. TERM ends it.
 *
 *   respawn N PROGRAM ARG...
 */
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int count;
static pid_t *children;

static void stop(int signal_number)
{
    (void)signal_number;
    for (int i = 0; i < count; i++)
        kill(children[i], SIGTERM);
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    _exit(0);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 64;
    count = atoi(argv[1]);
    children = calloc(count, sizeof *children);
    if (!children)
        return 71;
    for (int i = 0; i < count; i++)
        if (posix_spawn(&children[i], argv[2], NULL, NULL, &argv[2], environ) != 0)
            return 71;
    signal(SIGTERM, stop);
    for (;;) {
        pid_t ended = waitpid(-1, NULL, 0);
        for (int i = 0; i < count; i++)
            if (children[i] == ended && posix_spawn(&children[i], argv[2], NULL, NULL, &argv[2], environ) != 0)
                return 71;
    }
}
