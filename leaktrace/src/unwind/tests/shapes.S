# One function per shape of call-frame information. The instructions matter only by their length.
        .macro  function name
        .p2align 4
        .globl  \name
        .type   \name, @function
\name:
        .cfi_startproc
        .endm
        .macro  finish name
        .cfi_endproc
        .size   \name, .-\name
        .endm

        .text
        .type   _start, @function
_start:                                 # no entry at all
        xorl    %ebp, %ebp
        call    pushes
        hlt
        .size   _start, .-_start

        function pushes
        pushq   %rbp
        .cfi_def_cfa_offset 16
        .cfi_offset %rbp, -16
        pushq   %rbx
        .cfi_def_cfa_offset 24
        .cfi_offset %rbx, -24
        subq    $72, %rsp
        .cfi_def_cfa_offset 96
        call    framed
        addq    $72, %rsp
        .cfi_def_cfa_offset 24
        popq    %rbx
        .cfi_def_cfa_offset 16
        popq    %rbp
        .cfi_restore %rbp
        .cfi_def_cfa_offset 8
        ret
        finish  pushes

        function framed
        pushq   %rbp
        .cfi_def_cfa_offset 16
        .cfi_offset %rbp, -16
        movq    %rsp, %rbp
        .cfi_def_cfa_register %rbp
        subq    $64, %rsp
        leave
        .cfi_def_cfa %rsp, 8
        ret
        finish  framed

        function remembered
        subq    $24, %rsp
        .cfi_def_cfa_offset 32
        testl   %edi, %edi
        je      1f
        .cfi_remember_state
        addq    $24, %rsp
        .cfi_def_cfa_offset 8
        ret
1:
        .cfi_restore_state
        call    pushes
        addq    $24, %rsp
        .cfi_def_cfa_offset 8
        ret
        finish  remembered

        function realigned              # what gcc makes of over-aligned locals and alloca
        leaq    8(%rsp), %r10
        .cfi_def_cfa %r10, 0
        andq    $-64, %rsp
        pushq   -8(%r10)
        pushq   %rbp
        movq    %rsp, %rbp
        .cfi_escape 0x10, 0x06, 0x02, 0x76, 0x00                # rbp at (rbp + 0)
        pushq   %r10
        .cfi_escape 0x0f, 0x03, 0x76, 0x78, 0x06                # CFA = *(rbp - 8)
        call    pushes
        popq    %r10
        .cfi_def_cfa %r10, 0
        popq    %rbp
        leaq    -8(%r10), %rsp
        .cfi_def_cfa %rsp, 8
        ret
        finish  realigned

        function realigned_with_rbp
        pushq   %rbp
        .cfi_def_cfa_offset 16
        .cfi_offset %rbp, -16
        movq    %rsp, %rbp
        .cfi_def_cfa_register %rbp
        andq    $-64, %rsp
        call    pushes
        leave
        .cfi_def_cfa %rsp, 8
        ret
        finish  realigned_with_rbp

        function loaded                 # perlasm: the old stack pointer is kept on the new stack
        movq    %rsp, %rax
        .cfi_def_cfa_register %rax
        subq    $128, %rsp
        movq    %rax, 40(%rsp)
        .cfi_escape 0x0f, 0x05, 0x77, 0x28, 0x06, 0x23, 0x08    # CFA = *(rsp + 40) + 8
        nop
        .cfi_escape 0x0f, 0x05, 0x77, 0x28, 0x06, 0x38, 0x22    # the same by lit8, plus
        nop
        movq    40(%rsp), %rsp
        .cfi_def_cfa %rsp, 8
        ret
        finish  loaded

        function register_expression
        .cfi_escape 0x0f, 0x02, 0x77, 0x10                      # CFA = rsp + 16
        nop
        .cfi_escape 0x0f, 0x04, 0x76, 0x08, 0x23, 0x08          # CFA = rbp + 8 + 8
        ret
        finish  register_expression

        function outermost
        .cfi_undefined %rip
        call    pushes
        hlt
        finish  outermost

        function trampoline             # glibc's __restore_rt
        .cfi_signal_frame
        .cfi_escape 0x0f, 0x04, 0x77, 0xa0, 0x01, 0x06          # CFA = *(rsp + 160)
        .cfi_escape 0x10, 0x06, 0x03, 0x77, 0xf8, 0x00          # rbp at (rsp + 120)
        .cfi_escape 0x10, 0x10, 0x03, 0x77, 0xa8, 0x01          # rip at (rsp + 168)
        movq    $15, %rax
        syscall
        finish  trampoline

        .p2align 4
        .type   no_table, @function
no_table:
        pushq   %rbx
        call    pushes
        popq    %rbx
        ret
        nopw    8(%rax,%rax)
        nopw    8(%rax,%rax)
        .size   no_table, .-no_table

        function cfa_elsewhere
        .cfi_def_cfa %rbx, 16
        ret
        finish  cfa_elsewhere

        function odd_expression
        .cfi_escape 0x0f, 0x04, 0x77, 0x08, 0x06, 0x06          # two loads
        nop
        .cfi_escape 0x0f, 0x03, 0x77, 0x08, 0x1f                # negated
        ret
        finish  odd_expression

        function huge
        .cfi_def_cfa_offset 0x80000000
        nop
        .cfi_escape 0x0f, 0x05, 0x77, 0x80, 0x80, 0x04, 0x06    # CFA = *(rsp + 65536)
        ret
        finish  huge

        function lost_rbp
        .cfi_undefined %rbp
        nop
        .cfi_register %rbp, %rax
        nop
        .cfi_escape 0x10, 0x06, 0x02, 0x77, 0x00                # rbp at (rsp + 0)
        nop
        .cfi_same_value %rbp
        ret
        finish  lost_rbp

        function moved_return
        .cfi_offset %rip, -16
        nop
        .cfi_register %rip, %rcx
        ret
        finish  moved_return

        function switched_stack
        .cfi_offset %rsp, -24
        ret
        finish  switched_stack

        function broken
        nop
        .cfi_escape 0x3f                                        # no such instruction
        nop
        ret
        finish  broken

        .section .note.GNU-stack, "", @progbits
