#include "driver/failure.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "driver/api.h"
#include "types.h"

namespace ptxemu::driver
{
namespace
{
std::vector<std::string> split(const std::string &s, char by)
{
    std::vector<std::string> parts;
    size_t from = 0;
    for (size_t to; (to = s.find(by, from)) != std::string::npos; from = to + 1)
        parts.push_back(s.substr(from, to - from));
    parts.push_back(s.substr(from));
    return parts;
}

bool positive(const std::string &s, uint64_t *v)
{
    if (s.empty() || s.find_first_not_of("0123456789") != std::string::npos)
        return false;
    errno = 0;
    *v = strtoull(s.c_str(), nullptr, 10);
    return errno == 0 && *v > 0;
}

bool function_name(const std::string &s)
{
    return s == "*" || (s.size() > 2 && s.compare(0, 2, "cu") == 0 && s.find("_v") == std::string::npos);
}
} // namespace

bool FailurePlan::parse(const std::string &text, std::string *why)
{
    rules_.clear();
    if (text.empty())
        return true;
    for (const std::string &part : split(text, ',')) {
        std::vector<std::string> f = split(part, ':');
        uint64_t nth = 0, result = CUDA_ERROR_OUT_OF_MEMORY;
        const char *name;
        if (f.size() < 2 || f.size() > 3 || !function_name(f[0]) || !positive(f[1], &nth) ||
            (f.size() == 3 &&
             (!positive(f[2], &result) || result > 999 || cuGetErrorName(CUresult(result), &name) != CUDA_SUCCESS))) {
            *why = format("NB_EMU_FAIL: '%s' is not function:call or function:call:CUresult, as in cuMemAlloc:3:2",
                          part.c_str());
            rules_.clear();
            return false;
        }
        rules_.push_back({f[0], nth, int(result)});
    }
    return true;
}

int FailurePlan::strike(const std::string &function)
{
    int result = 0;
    for (Rule &r : rules_)
        if ((r.function == "*" || r.function == function) && ++r.seen == r.nth && !result)
            result = r.result;
    return result;
}

} // namespace ptxemu::driver
