/* What the unit tests share: cmocka's includes, and checks that read well. */
#ifndef CAIRN_TESTS_CHECK_H
#define CAIRN_TESTS_CHECK_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/base.h"

#define assert_status(got, wanted) assert_string_equal(status_name(got), status_name(wanted))
#define assert_ok(got) assert_status(got, STATUS_OK)

static inline void assert_bytes(struct bytes got, struct bytes wanted)
{
    assert_int_equal(got.len, wanted.len);
    if (wanted.len > 0)
        assert_memory_equal(got.data, wanted.data, wanted.len);
}

#endif
