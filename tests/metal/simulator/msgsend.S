# SPDX-License-Identifier: Apache-2.0
# objc_msgSend for x86_64 Linux. GCC's runtime has objc_msg_lookup(receiver, selector), which only finds the implementation: keep
# every register that can carry an argument, look up, put them back and jump. The implementation sees the caller's own stack, so
# arguments in memory (structs, the seventh integer and later) need no care.
        .text

# frame: xmm0-7 at 0..127, then the seven general registers; 192 bytes keep the stack aligned to 16 after the push of rbp
        .macro SEND name, receiver, selector, result_in_memory
        .globl  \name
        .type   \name, @function
        .p2align 4
\name:
        .cfi_startproc
        testq   \receiver, \receiver
        jz      1f
        pushq   %rbp
        .cfi_def_cfa_offset 16
        .cfi_offset %rbp, -16
        movq    %rsp, %rbp
        .cfi_def_cfa_register %rbp
        subq    $192, %rsp
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7
        movaps  %xmm\n, 16*\n(%rsp)
        .endr
        movq    %rdi, 128(%rsp)
        movq    %rsi, 136(%rsp)
        movq    %rdx, 144(%rsp)
        movq    %rcx, 152(%rsp)
        movq    %r8, 160(%rsp)
        movq    %r9, 168(%rsp)
        movq    %rax, 176(%rsp)         # al: how many vector registers a variadic call uses
        .if     \result_in_memory
        movq    %rsi, %rdi
        movq    %rdx, %rsi
        .endif
        call    objc_msg_lookup@PLT
        movq    %rax, %r11
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7
        movaps  16*\n(%rsp), %xmm\n
        .endr
        movq    128(%rsp), %rdi
        movq    136(%rsp), %rsi
        movq    144(%rsp), %rdx
        movq    152(%rsp), %rcx
        movq    160(%rsp), %r8
        movq    168(%rsp), %r9
        movq    176(%rsp), %rax
        leave
        .cfi_restore %rbp
        .cfi_def_cfa %rsp, 8
        jmp     *%r11
1:                                      # a nil receiver: zero, as on macOS; a result in memory stays as it was
        .if     \result_in_memory
        movq    %rdi, %rax
        .else
        xorl    %eax, %eax
        .endif
        xorl    %edx, %edx
        pxor    %xmm0, %xmm0
        pxor    %xmm1, %xmm1
        ret
        .cfi_endproc
        .size   \name, . - \name
        .endm

        SEND    objc_msgSend, %rdi, %rsi, 0
        SEND    objc_msgSend_fpret, %rdi, %rsi, 0
        SEND    objc_msgSend_stret, %rsi, %rdx, 1

        .section .note.GNU-stack, "", @progbits
