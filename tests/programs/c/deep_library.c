// The other side of deep.c's "plt" mode: a library function that calls another of its own through the PLT.
#include "protocol.h"

int library_inner(int (*callback)(int), int value);

int through_library(int (*callback)(int), int value) {
    int result = library_inner(callback, value);
    NOT_A_TAIL();
    return result + 1;
}

int library_inner(int (*callback)(int), int value) {
    int result = callback(value);
    NOT_A_TAIL();
    return result + 1;
}
