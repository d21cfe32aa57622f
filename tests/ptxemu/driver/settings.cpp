#include "driver/settings.h"

#include <cerrno>
#include <cstdlib>
#include <sstream>

namespace ptxemu::driver
{
namespace
{
const char *value_of(const char *name)
{
    const char *v = getenv(name);
    return v && *v ? v : nullptr;
}

bool number(const char *s, uint64_t *v)
{
    std::string text = s;
    if (text.find_first_not_of("0123456789") != std::string::npos)
        return false;
    errno = 0;
    *v = strtoull(s, nullptr, 10);
    return errno == 0;
}

/* Each reader leaves *s.error alone when the value is fine. */
template <class T>
void read_number(Settings &s, const char *name, T *out, uint64_t low, uint64_t high)
{
    const char *v = value_of(name);
    uint64_t n;
    if (!v)
        return;
    if (!number(v, &n) || n < low || n > high)
        s.error = format("%s: '%s' is not a whole number from %llu to %llu", name, v, (unsigned long long)low,
                         (unsigned long long)high);
    else
        *out = T(n);
}

/* 0, 1, or names: the checks go by the names of compute-sanitizer's tools.  Bounds (memcheck) are always on. */
void read_checks(Settings &s)
{
    const char *v = value_of("NB_EMU_CHECK");
    const std::string text = v ? v : "1";
    if (text == "0" || text == "1") {
        s.options.check = text == "1";
        return;
    }
    s.options.init = s.options.race = false;
    std::stringstream names(text);
    std::string name;
    while (std::getline(names, name, ',')) {
        s.options.init |= name == "initcheck";
        s.options.race |= name == "racecheck";
        if (name != "initcheck" && name != "racecheck" && name != "synccheck" && name != "memcheck")
            s.error =
                format("NB_EMU_CHECK: '%s' is not 0, 1, or a list of memcheck, synccheck, initcheck and racecheck", v);
    }
}

void read_capability(Settings &s)
{
    const char *v = value_of("NB_EMU_CC");
    if (!v)
        return;
    for (auto known :
         {std::pair<const char *, unsigned>{"7.5", 75}, {"8.0", 80}, {"8.6", 86}, {"8.9", 89}, {"9.0", 90}})
        if (std::string(v) == known.first) {
            s.cc = known.second;
            return;
        }
    s.error = format("NB_EMU_CC: '%s' is none of the compute capabilities 7.5, 8.0, 8.6, 8.9 and 9.0", v);
}

void read_text(const char *name, std::string *out)
{
    if (const char *v = value_of(name))
        *out = v;
}
} // namespace

bool parse_size(const std::string &text, uint64_t *bytes)
{
    static const std::string units = "KMGT";
    if (text.empty())
        return false;
    size_t unit = units.find(text.back());
    std::string digits = unit == std::string::npos ? text : text.substr(0, text.size() - 1);
    unsigned shift = unit == std::string::npos ? 0 : 10 * unsigned(unit + 1);
    uint64_t n;
    if (digits.empty() || !number(digits.c_str(), &n) || n == 0 || n > (uint64_t(1) << 46) >> shift)
        return false;
    *bytes = n << shift;
    return true;
}

Settings read_settings()
{
    Settings s;
    read_number(s, "NB_EMU_DEVICES", &s.devices, 1, 16);
    read_capability(s);
    read_number(s, "NB_EMU_SMS", &s.sms, 1, 1024);
    const char *memory = value_of("NB_EMU_MEMORY");
    if (memory && !parse_size(memory, &s.memory))
        s.error = format("NB_EMU_MEMORY: '%s' is not a size such as 512M or 80G", memory);
    read_checks(s);
    read_number(s, "NB_EMU_THREADS", &s.options.threads, 0, 1024);
    read_number(s, "NB_EMU_PATIENCE", &s.options.patience, 1, UINT64_MAX);
    read_number(s, "NB_EMU_LEAKS", &s.leaks, 0, 1);
    read_number(s, "NB_EMU_TRACE", &s.trace, 0, 1);
    read_text("NB_EMU_PROFILE", &s.profile);
    read_text("NB_EMU_REPORT", &s.report);
    s.options.profile = !s.profile.empty();
    std::string why;
    const char *fail = value_of("NB_EMU_FAIL");
    if (fail && !s.fail.parse(fail, &why))
        s.error = why;
    return s;
}

} // namespace ptxemu::driver
