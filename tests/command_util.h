/* The program, run as a user runs it. */
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "testutil.h"

namespace
{

struct Result {
    int status = -1; /* exit status, or 1000 + signal */
    std::string out, err;
};

inline pid_t start(const std::vector<std::string> &args, const std::string &out, const std::string &err,
                   const std::function<void()> &in_child = {})
{
    pid_t pid = fork();
    if (pid)
        return pid;
    if (!freopen(out.c_str(), "wb", stdout) || !freopen(err.c_str(), "wb", stderr))
        _exit(126);
    if (in_child)
        in_child();
    std::string binary = std::string(NIBBLE_BUILD_DIR) + "/nibble";
    std::vector<char *> argv{const_cast<char *>(binary.c_str())};
    for (const std::string &a : args)
        argv.push_back(const_cast<char *>(a.c_str()));
    argv.push_back(nullptr);
    execv(binary.c_str(), argv.data());
    _exit(127);
}

/* Kills a process that is still there after some seconds: a test that hangs tells nothing. */
inline void alarm_after(pid_t pid, int seconds)
{
    for (int i = 0; i < seconds * 50; i++) {
        siginfo_t info = {};
        if (waitid(P_PID, id_t(pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == pid)
            return;
        usleep(20000);
    }
    kill(pid, SIGKILL);
}

/* Waits until the process has taken over a signal (SigCgt of its status): one that comes earlier is not its to handle. */
inline void wait_until_it_catches(pid_t pid, int sig)
{
    for (int i = 0; i < 60 * 50; i++) {
        std::string status = read_text("/proc/" + std::to_string(pid) + "/status");
        size_t at = status.find("SigCgt:");
        if (at == std::string::npos || strtoull(status.c_str() + at + 7, nullptr, 16) >> (sig - 1) & 1)
            return;
        usleep(20000);
    }
}

inline int wait_for(pid_t pid)
{
    int s = 0;
    waitpid(pid, &s, 0);
    return WIFEXITED(s) ? WEXITSTATUS(s) : 1000 + WTERMSIG(s);
}

inline Result nibble(const std::vector<std::string> &args, const std::function<void()> &in_child = {})
{
    TempDir d;
    Result r;
    r.status = wait_for(start(args, d / "out", d / "err", in_child));
    r.out = read_text(d / "out");
    r.err = read_text(d / "err");
    return r;
}

} // namespace
