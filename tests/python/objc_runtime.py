# SPDX-License-Identifier: Apache-2.0
"""Just enough of the Objective-C runtime for tests that look into the simulator or send it messages of their own."""

import ctypes
from contextlib import contextmanager

LIBRARY = ctypes.CDLL("libMetalSim.so")  # the one that the Metal engine has loaded
POINTER = ctypes.c_void_p


def function(name, result, *arguments):
    f = LIBRARY[name]
    f.restype, f.argtypes = result, arguments
    return f


get_class = function("objc_lookUpClass", POINTER, ctypes.c_char_p)
get_class_list = function("objc_getClassList", ctypes.c_int, POINTER, ctypes.c_int)
class_name = function("class_getName", ctypes.c_char_p, POINTER)
superclass = function("class_getSuperclass", POINTER, POINTER)
copy_methods = function("class_copyMethodList", ctypes.POINTER(POINTER), POINTER, ctypes.POINTER(ctypes.c_uint))
method_selector = function("method_getName", POINTER, POINTER)
method_types = function("method_getTypeEncoding", ctypes.c_char_p, POINTER)
selector_name = function("sel_getName", ctypes.c_char_p, POINTER)
selector = function("sel_registerName", POINTER, ctypes.c_char_p)


def toy_classes():
    """{name: class} of every class with an Apple name."""
    count = get_class_list(None, 0)
    classes = (POINTER * count)()
    get_class_list(classes, count)
    named = {class_name(c).decode(): c for c in classes}
    return {name: c for name, c in named.items() if name.startswith(("MPS", "MTL")) and not name.startswith("MPSNNCpp")}


def methods(cls):
    """(selector, encoding) of the methods that a class itself implements."""
    count = ctypes.c_uint()
    found = copy_methods(cls, ctypes.byref(count))
    return [
        (selector_name(method_selector(found[i])).decode(), method_types(found[i]).decode()) for i in range(count.value)
    ]


def metaclass(cls):
    return ctypes.cast(cls, ctypes.POINTER(POINTER))[0]  # its first word, as of every object


def send(receiver, name, *arguments, result=POINTER):
    """Sends a message: ints are NSUInteger, floats float, None and objects pointers."""
    kinds = [
        ctypes.c_float
        if isinstance(a, float)
        else ctypes.c_size_t
        if isinstance(a, int) and not isinstance(a, bool)
        else POINTER
        for a in arguments
    ]
    values = [a if not isinstance(a, Object) else a.pointer for a in arguments]
    prototype = ctypes.CFUNCTYPE(result, POINTER, POINTER, *kinds)
    target = receiver.pointer if isinstance(receiver, Object) else receiver
    return prototype(("objc_msgSend", LIBRARY))(target, selector(name.encode()), *values)


class Object:
    """Marks a pointer to an object, so that it is not taken for a number."""

    def __init__(self, pointer):
        self.pointer = pointer


def new(class_of, initializer, *arguments):
    """alloc and an initializer; the caller's pool releases it."""
    made = send(send(get_class(class_of.encode()), "alloc"), initializer, *arguments)
    return Object(send(made, "autorelease"))


@contextmanager
def pool():
    opened = send(send(get_class(b"NSAutoreleasePool"), "alloc"), "init")
    try:
        yield
    finally:
        send(opened, "drain")
