#!/usr/bin/env python3
"""Writes all of <cobatch/cobatch.hpp> into one header: single_header.py INCLUDE_DIR OUTPUT

Each header of cobatch stands where it was first included, or first outside of a condition; so do those of the standard
library. Optional headers, such as <cobatch/asio.hpp>, are not in it.
"""
import pathlib
import re
import sys

OWN = re.compile(r"\s*#\s*include\s*<(cobatch/[^>]+)>")
OTHER = re.compile(r"\s*#\s*include\s*<([^>]+)>")
OPENS = re.compile(r"\s*#\s*if")
CLOSES = re.compile(r"\s*#\s*endif")


def guard_of(name):
    return "COBATCH_SINGLE_" + re.sub(r"\W", "_", name.removeprefix("cobatch/").removesuffix(".hpp")).upper()


def expand(name, root, seen, lines):
    """Appends the header, with those that it includes where it includes them."""
    seen.add(name)
    lines += [f"#ifndef {guard_of(name)}", f"#define {guard_of(name)}"]
    depth = 0
    for line in (root / name).read_text(encoding="utf-8").splitlines():
        if line.strip() == "#pragma once" or line.startswith("// SPDX-License-Identifier"):
            continue
        if own := OWN.match(line):
            # What stands under a condition may have to be there once more: its guard tells.
            if own[1] not in seen:
                expand(own[1], root, set(seen) if depth else seen, lines)
            continue
        if other := OTHER.match(line):
            if other[1] in seen:
                continue
            if not depth:
                seen.add(other[1])
        depth += bool(OPENS.match(line)) - bool(CLOSES.match(line))
        lines.append(line)
    if depth:
        sys.exit(f"{name}: an #if without its #endif")
    lines.append(f"#endif  // {guard_of(name)}")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    root, output = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    version = {
        part: number
        for part, number in re.findall(
            r"^#define COBATCH_VERSION_(MAJOR|MINOR|PATCH) (\d+)$",
            (root / "cobatch/version.hpp").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }
    lines = [
        "// SPDX-License-Identifier: BSL-1.0",
        "//",
        f"// cobatch {version['MAJOR']}.{version['MINOR']}.{version['PATCH']}, all of <cobatch/cobatch.hpp> in one header,"
        " written by .ci/single_header.py.",
        "// A program has either this one or the others.",
        "#pragma once",
        "",
    ]
    expand("cobatch/cobatch.hpp", root, set(), lines)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + "\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
