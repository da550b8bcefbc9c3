/* The least that a launcher can do, as a peer to compare with: starts a program N times and waits
 * for TERM, which it passes on.
 *
 *   bare N PROGRAM ARG...
 */
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>

extern char **environ;

int main(int argc, char **argv)
{
    if (argc < 3)
        return 64;
    int count = atoi(argv[1]), signal_number;
    pid_t *children = calloc(count, sizeof *children);
    if (!children)
        return 71;
    posix_spawnattr_t attributes;
    sigset_t stop, before;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigprocmask(SIG_BLOCK, &stop, &before);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &before);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    for (int i = 0; i < count; i++)
        if (posix_spawn(&children[i], argv[2], NULL, &attributes, &argv[2], environ) != 0)
            return 71;
    sigwait(&stop, &signal_number);
    for (int i = 0; i < count; i++)
        kill(children[i], SIGTERM);
    for (int i = 0; i < count; i++)
        waitpid(children[i], NULL, 0);
    return 0;
}
