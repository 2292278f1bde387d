# Turns a binary file into a C source that defines cairn_descriptor_set and its length.
file(READ ${INPUT} hex HEX)
string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," data "${hex}")
file(WRITE ${OUTPUT} "#include <stddef.h>\n#include <stdint.h>\nextern const uint8_t cairn_descriptor_set[];\nextern const size_t cairn_descriptor_set_len;\nconst uint8_t cairn_descriptor_set[] = {\n${data}};\nconst size_t cairn_descriptor_set_len = sizeof cairn_descriptor_set;\n")
