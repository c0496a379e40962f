"""Writes RAR archives whose files are stored, not compressed: no free program makes RARs, and the tests need some.

After the published descriptions of the two formats. What stands here is read by libarchive and by rarfile.
"""
import struct
import zlib


def _number(n):
    "A whole number as RAR 5 stores it: seven bits a byte, the lowest first."
    out = bytearray()
    while True:
        out.append((n & 127) | (128 if n > 127 else 0))
        n >>= 7
        if not n:
            return bytes(out)


def _block5(kind, flags, body):
    head = _number(kind) + _number(flags) + body
    head = _number(len(head)) + head
    return struct.pack("<I", zlib.crc32(head)) + head


def rar5(members, kind=0o100644):
    "The bytes of a RAR 5 archive of `(name, bytes)`; `kind` is the Unix mode of all of them."
    parts = [b"Rar!\x1a\x07\x01\x00", _block5(1, 0, _number(0))]
    for name, data in members:
        name = name.encode()
        body = b"".join(map(_number, (len(data), 4, len(data), kind))) + struct.pack("<I", zlib.crc32(data))
        parts += [_block5(2, 2, body + b"".join(map(_number, (0, 1, len(name)))) + name), data]
    return b"".join(parts) + _block5(5, 0, _number(0))


def _block4(kind, flags, body):
    head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
    return struct.pack("<H", zlib.crc32(head) & 0xffff) + head


def rar4(members):
    "The bytes of a RAR 4 archive of `(name, bytes)`; names may be bytes that are not UTF-8."
    parts = [b"Rar!\x1a\x07\x00", _block4(0x73, 0, bytes(6))]
    for name, data in members:
        name = name if isinstance(name, bytes) else name.encode()
        body = struct.pack("<IIBIIBBHI", len(data), len(data), 3, zlib.crc32(data), 0x4A210000, 29, 0x30, len(name),
                           0o100644)
        parts += [_block4(0x74, 0x8000, body + name), data]
    return b"".join(parts) + _block4(0x7B, 0x4000, b"")
