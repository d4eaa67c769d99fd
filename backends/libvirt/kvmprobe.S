# What backends/libvirt/kvm.py boots to see whether KVM can run a 64-bit kernel: a multiboot image of some 300 bytes.
#
#     as kvmprobe.S -o probe.o && ld -Ttext=0x100000 --oformat=binary -o probe.bin probe.o
#
# It sets up paging, goes to long mode, counts in a loop as fast as a processor can, takes interrupts of a timer
# meanwhile, and says so on the first serial port. A hypervisor that merely emulates kernels (instruction by instruction)
# does not get through that loop in the time it is given.

        .set    ROOT, 0x110000          # page tables: 4 KiB each, then the interrupt table
        .set    IDT, 0x113000
        .set    TIMER, 0x20             # interrupt vector
        .set    ROUNDS, 100000000       # 25 to 100 ms of a real processor
        .set    PORT, 0x3f8

        .text
        .code32
        .globl  _start
header: .long   0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
        .long   header, header, 0, 0, _start

_start: cli
        mov     $0x180000, %esp
        mov     $ROOT, %edi             # three empty tables and an empty interrupt table
        xor     %eax, %eax
        mov     $4096, %ecx
        rep stosl
        movl    $ROOT + 0x1003, ROOT
        movl    $ROOT + 0x2003, ROOT + 0x1000
        mov     $ROOT + 0x2000, %edi    # 16 MiB, each address is its own
        mov     $0x83, %eax
        mov     $8, %ecx
1:      mov     %eax, (%edi)
        add     $0x200000, %eax
        add     $8, %edi
        loop    1b
        mov     $ROOT, %eax
        mov     %eax, %cr3
        mov     %cr4, %eax
        or      $0x20, %eax             # PAE
        mov     %eax, %cr4
        mov     $0xc0000080, %ecx       # EFER: long mode
        rdmsr
        or      $0x100, %eax
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax       # paging
        mov     %eax, %cr0
        lgdt    gdtr
        ljmp    $8, $long

        .code64
long:   mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $IDT + TIMER * 16, %edi
        mov     $tick, %eax
        mov     %ax, (%rdi)
        movw    $8, 2(%rdi)
        movw    $0x8e00, 4(%rdi)
        shr     $16, %eax
        mov     %ax, 6(%rdi)
        lidt    idtr
        mov     $0x11, %al              # the interrupt controller: vectors from TIMER on, all masked but the timer
        out     %al, $0x20
        mov     $TIMER, %al
        out     %al, $0x21
        mov     $4, %al
        out     %al, $0x21
        mov     $1, %al
        out     %al, $0x21
        mov     $0xfe, %al
        out     %al, $0x21
        mov     $0x34, %al              # the timer: 100 Hz
        out     %al, $0x43
        mov     $11932 & 0xff, %al
        out     %al, $0x40
        mov     $11932 >> 8, %al
        out     %al, $0x40
        sti
        mov     $ROUNDS, %ecx
2:      dec     %ecx
        jnz     2b
3:      cmpl    $3, ticks
        jae     4f
        hlt
        jmp     3b
4:      mov     $text, %esi
        mov     $PORT, %edx
5:      lodsb
        test    %al, %al
        jz      6f
        out     %al, %dx
        jmp     5b
6:      hlt
        jmp     6b

tick:   incl    ticks
        push    %rax
        mov     $0x20, %al
        out     %al, $0x20
        pop     %rax
        iretq

        .balign 8
gdt:    .quad   0, 0x00af9a000000ffff, 0x00cf92000000ffff
gdtr:   .word   23
        .long   gdt
idtr:   .word   (TIMER + 1) * 16 - 1
        .quad   IDT
ticks:  .long   0
text:   .asciz  "KVM runs 64-bit code\n"
