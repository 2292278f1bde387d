/* What the fuzz targets share: the entry that libFuzzer calls, and a first byte that chooses a parser. */
#ifndef CAIRN_FUZZ_H
#define CAIRN_FUZZ_H

#include "base/base.h"
#include "wire/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The bytes behind the first; false when there is none. */
static inline bool fuzz_choose(const uint8_t *data, size_t size, unsigned choices, unsigned *choice,
                               struct bytes *rest)
{
    if (size == 0)
        return false;
    *choice = data[0] % choices;
    *rest = (struct bytes){data + 1, size - 1};
    return true;
}

#endif
