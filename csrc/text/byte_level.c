/* GPT-2's alphabet: each byte is written as a printable character.  33-126, 161-172 and 174-255 stand for themselves,
 * the other 68 bytes are 256, 257, ... in order. */
#include "base/utf8.h"
#include "text/impl.h"

static bool printable(unsigned b)
{
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
}

/* How many bytes below b are not printable. */
static unsigned rank_of(unsigned b)
{
    return b <= 33 ? b : b <= 161 ? 33 + (b > 126 ? b - 127 : 0) : 33 + 34 + (b > 173);
}

static uint32_t char_of(unsigned b)
{
    return printable(b) ? b : 256 + rank_of(b);
}

/* The inverse of char_of: -1 for characters outside of the alphabet. */
static int byte_of(uint32_t cp)
{
    if (cp < 256)
        return printable(cp) ? (int)cp : -1;
    if (cp < 256 + 33)
        return (int)cp - 256;
    if (cp < 256 + 33 + 34)
        return (int)cp - 256 - 33 + 127;
    return cp == 256 + 67 ? 173 : -1;
}

void nbi_byte_level_encode(const char *s, size_t n, nbi_str *out)
{
    for (size_t i = 0; i < n; i++) {
        char c[4];
        nbi_str_add(out, c, (size_t)nbi_utf8_encode(char_of((unsigned char)s[i]), c));
    }
}

bool nbi_byte_level_decode(const char *s, size_t n, nbi_str *out)
{
    size_t before = out->len;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = nbi_utf8_decode(s + i, n - i, &cp), b = len > 0 ? byte_of(cp) : -1;
        if (b < 0) {
            out->len = before;
            return false;
        }
        char c = (char)b;
        nbi_str_add(out, &c, 1);
        i += (size_t)len;
    }
    return true;
}
