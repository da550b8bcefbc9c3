/* Runs a program to its end and writes the most memory that it ever had resident, in KiB, to the
 * standard error; its status is the program's.
 *
 *   peak PROGRAM ARG...
 *
 * The kernel counts what a process had before its exec too, so whoever starts it must be small
 * itself: this is linked statically and does nothing else.
 */
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 2)
        return 64;
    pid_t child = fork();
    if (child == 0) {
        execvp(argv[1], &argv[1]);
        _exit(127);
    }
    int status;
    struct rusage usage;
    if (child < 0 || wait4(child, &status, 0, &usage) != child)
        return 71;
    fprintf(stderr, "%ld\n", usage.ru_maxrss);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 70;
}
