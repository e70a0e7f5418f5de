# SPDX-License-Identifier: Apache-2.0
"""Compares messages, constants and structs that C++ code uses with tools/mps_api.json.

The type codes are Apple's @encode letters: 'B' is BOOL, '@"X"' an object of class or protocol X. Nothing here knows how the headers
were made.
"""

import json
import re
from pathlib import Path

FACTS = json.loads((Path(__file__).resolve().parents[2] / "tools" / "mps_api.json").read_text())
CLASSES = {c["name"]: c for c in FACTS["classes"]}
PROTOCOLS = {p["name"]: p for p in FACTS["protocols"]}
ENUMS = {e["name"]: e for e in FACTS["enums"]}
STRUCTS = {s["name"]: s for s in FACTS["structs"]}
TYPEDEFS = {t["name"]: t["type"] for t in FACTS["typedefs"]}

SCALARS = {
    "void": "v",
    "BOOL": "B",
    "float": "f",
    "double": "d",
    "size_t": "Q",
    "uint32_t": "I",
    "int32_t": "i",
    "NSUInteger": "Q",
    "NSInteger": "q",
    "Class": "#",
    "id": '@"NSObject"',
    "NSRange": "{_NSRange=QQ}",
    "MTLSize": "{MTLSize=QQQ}",
    "MTLRegion": "{MTLRegion={MTLOrigin=QQQ}{MTLSize=QQQ}}",
}
#: Metal's enumerations among the facts' types.
METAL_ENUMS = {"MTLCPUCacheMode", "MTLPixelFormat", "MTLStorageMode", "MTLTextureType", "MTLTextureUsage"}
#: What an object answers by being one, so no fact lists it under the class.
OF_EVERY_OBJECT = {("+", "alloc"), ("+", "new"), ("-", "dealloc"), ("-", "copy")}


# --- types


def code(objc_type, receiver=""):
    """The @encode code of an Objective-C type; instancetype is an object of the receiver's class."""
    text = re.sub(r"\s*\b(__autoreleasing|_Nullable|_Nonnull|const)\b", "", objc_type).strip()
    if text == "instancetype":
        return f'@"{receiver}"'
    if text in SCALARS:
        return SCALARS[text]
    if text in METAL_ENUMS:
        return "Q"
    if text in ENUMS:
        return SCALARS[ENUMS[text]["underlying_type"]]
    if text in STRUCTS:
        return "{" + text + "=" + "".join(code(f["type"]) for f in STRUCTS[text]["fields"]) + "}"
    if TYPEDEFS.get(text, "").startswith("void (^)"):
        return "@?"
    if match := re.fullmatch(r"(?:id|NSObject)<(\w+)>(?: \*)?", text):
        return f'@"{match[1]}"'
    if match := re.fullmatch(r"(.*\*) ?\*", text):
        return "^" + code(match[1])
    match = re.fullmatch(r"(\w+)(?:<.*>)? \*", text)
    pointed = match[1]
    if pointed in ("void", "NSZone"):
        return "^v"
    if pointed in SCALARS or pointed in STRUCTS:
        return "^" + code(pointed)
    if TYPEDEFS.get(pointed, "").startswith("NSArray<"):
        pointed = "NSArray"
    return f'@"{pointed}"'


def split_encoding(encoding):
    """The types of a method's encoding: '@24@0:8@16' is ['@', '@', ':', '@']. Names of classes and structs are left out."""
    text = re.sub(r'"[^"]*"', "", encoding)
    text = re.sub(r"\{[^={}]*=", "{", text)
    pattern = r"[rnNoORV]*(\^*(?:\{(?:[^{}]|\{[^{}]*\})*\}|@\?|.))[+-]?\d*"
    return re.findall(pattern, text)


# --- messages of a class


def own_messages(fact):
    """{(kind, selector): types with the result first} that the fact itself declares."""
    name, found = fact["name"], {}
    for method in fact["methods"]:
        kind = "+" if method["kind"] == "class" else "-"
        types = [code(method["returns"], name), *(code(a["objc_type"]) for a in method["args"])]
        found[kind, method["selector"]] = types
    for prop in fact["properties"]:
        found.setdefault(("-", prop["getter"]), [code(prop["type"])])
        if "setter" in prop:
            found[("-", prop["setter"])] = ["v", code(prop["type"])]
    return found


def line(name):
    """The class, its superclasses and the protocols that they adopt."""
    while name in CLASSES:
        yield CLASSES[name]
        yield from (PROTOCOLS[p] for p in CLASSES[name]["protocols"] if p in PROTOCOLS)
        name = CLASSES[name]["superclass"]


def lookup(owner, kind, selector):
    """The types of a message to the class or <protocol>, or None."""
    name = owner.strip("<>")
    if f"{kind}{selector}" in CLASSES.get(name, {}).get("unavailable", []):
        return None
    if (kind, selector) == ("-", "init") and "-init" in CLASSES.get(name, {}).get("inherited_constructors", []):
        return [f'@"{name}"']
    facts = [PROTOCOLS[name]] if owner.startswith("<") and name in PROTOCOLS else line(name)
    for fact in facts:
        if types := own_messages(fact).get((kind, selector)):
            declared = f'@"{fact["name"]}"'
            returns_self = any(m["selector"] == selector and m["returns"] == "instancetype" for m in fact["methods"])
            return [f'@"{name}"' if returns_self and types[0] == declared else types[0], *types[1:]]
    return None


def expected_messages():
    """(owner, kind, selector) of everything that the facts publish and that can be sent."""
    for fact in FACTS["classes"]:
        for kind, selector in own_messages(fact):
            yield fact["name"], kind, selector
        for text in fact.get("inherited_constructors", []):
            if text != "+new":  # alloc and init
                yield fact["name"], text[0], text[1:]
    for fact in FACTS["protocols"]:
        for kind, selector in own_messages(fact):
            if kind == "-":  # a class method has no class to be sent to
                yield f"<{fact['name']}>", kind, selector


def wrong_messages(messages):
    """One complaint for each message that the facts do not have, or have with other types."""
    for owner, kind, selector, *types in messages:
        expected = lookup(owner, kind, selector)
        if expected is None:
            yield f"{owner} {kind}{selector}: the facts have no such message"
        elif types != expected:
            yield f"{owner} {kind}{selector}: sent as {types}, declared as {expected}"


def missing_messages(messages):
    sent = {(owner, kind, selector) for owner, kind, selector, *_ in messages}
    for owner, kind, selector in expected_messages():
        if (owner, kind, selector) not in sent:
            yield f"{owner} {kind}{selector}: missing"
    # A protocol's messages can be sent to each class that adopts it.
    for fact in FACTS["classes"]:
        owners = {f["name"] for f in line(fact["name"]) if f["kind"] == "class"}
        for name in [p for p in fact["protocols"] if p in PROTOCOLS and fact["superclass"] != "NSObject"]:
            for kind, selector in own_messages(PROTOCOLS[name]):
                if not any((owner, kind, selector) in sent for owner in owners):
                    yield f"{fact['name']} {kind}{selector} of {name}: missing"


def wrong_implementations(methods):
    """The same for methods that we implement: (owner, kind, selector, runtime encoding), for toy classes and run-time classes."""
    for owner, kind, selector, encoding in methods:
        expected = lookup(owner, kind, selector)
        if expected is None:
            if (kind, selector) not in OF_EVERY_OBJECT and selector != "copyWithZone:":
                yield f"{owner} {kind}{selector}: the facts have no such method"
            continue
        flat = [split_encoding(t)[0] for t in expected]
        result, _self, _cmd, *arguments = split_encoding(encoding)
        if not all(same_type(a, b) for a, b in zip([result, *arguments], flat, strict=False)) or len(flat) != 1 + len(
            arguments
        ):
            yield f"{owner} {kind}{selector}: implemented as {encoding}, declared as {expected}"


def same_type(implemented, declared):
    if declared == "B":
        return implemented in ("B", "c", "C")  # BOOL on arm64 and x86_64 Macs and in GCC's runtime
    if declared == "@?":
        return implemented in ("@?", "@")
    return implemented == declared or (implemented[0] == declared[0] == "^")


# --- constants and structs


def wrong_constants(constants):
    seen = {}
    for enum, constant, kind, value in constants:
        seen[enum, constant] = (kind, int(value) % 2**64)
    expected = {
        (e["name"], k): (SCALARS[e["underlying_type"]], v % 2**64)
        for e in FACTS["enums"]
        for k, v in e["values"].items()
    }
    for key in seen.keys() | expected.keys():
        if seen.get(key) != expected.get(key):
            yield f"{key[0]} {key[1]}: is {seen.get(key)}, declared as {expected.get(key)}"


def wrong_structs(structs):
    seen = {name: (text, int(size)) for name, text, size in structs}
    expected = {name: (code(name), 8 * len(re.sub(r"\w+=|[{}]", "", code(name)))) for name in STRUCTS}
    for name in seen.keys() | expected.keys():
        if seen.get(name) != expected.get(name):
            yield f"{name}: is {seen.get(name)}, declared as {expected.get(name)}"
