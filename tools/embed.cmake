# Turns a file into a C source that defines the array NAME and its length NAME_len.
file(READ ${INPUT} hex HEX)
string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," data "${hex}")
file(WRITE ${OUTPUT} "#include <stddef.h>\n#include <stdint.h>\nextern const uint8_t ${NAME}[];\nextern const size_t ${NAME}_len;\nconst uint8_t ${NAME}[] = {\n${data}};\nconst size_t ${NAME}_len = sizeof ${NAME};\n")
