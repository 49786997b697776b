# cython: language_level=3
"""Numbers in network order and in decimal, for the compiled parts; C functions without a module.

Nothing here checks bounds: who calls has made sure of the room.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef inline uint16_t read_16(const uint8_t *at) noexcept:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline uint32_t read_32(const uint8_t *at) noexcept:
    return <uint32_t>read_16(at) << 16 | read_16(at + 2)


cdef inline uint64_t read_64(const uint8_t *at) noexcept:
    return <uint64_t>read_32(at) << 32 | read_32(at + 4)


cdef inline uint8_t *write_32(uint8_t *to, uint32_t number) noexcept:
    """Write a number; return what is behind it."""
    to[0] = number >> 24
    to[1] = number >> 16 & 0xFF
    to[2] = number >> 8 & 0xFF
    to[3] = number & 0xFF
    return to + 4


cdef inline uint8_t *write_64(uint8_t *to, uint64_t number) noexcept:
    """Write a number; return what is behind it."""
    return write_32(write_32(to, <uint32_t>(number >> 32)), <uint32_t>number)


cdef inline uint8_t *write_number(uint8_t *to, uint64_t number) noexcept:
    """Write a number in decimal, at most 20 digits; return what is behind it."""
    cdef uint8_t digits[20]
    cdef int left = 20
    while True:
        left -= 1
        digits[left] = <uint8_t>(c"0" + number % 10)
        number //= 10
        if not number:
            break
    memcpy(to, digits + left, 20 - left)
    return to + 20 - left
