"""The emulator of PTX itself: what the ISA says of instructions, and what no card allows."""

import numpy as np
import pytest
from ptx_instructions import decoded
from ptx_machine import Launch, run
from ptx_program import PtxError, parse
from ptx_spaces import GlobalMemory

THREADS = 64
HEAD = f"""
.visible .entry k(
	.param .u64 .ptr .global .align 1 a,
	.param .u64 .ptr .global .align 1 out
)
.reqntid {THREADS}
{{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<99>;
	.reg .b64 %rd<99>;
	ld.param.b64 %rd1, [a];
	ld.param.b64 %rd2, [out];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd3, %r1, 8;
	add.s64 %rd4, %rd1, %rd3;
	add.s64 %rd5, %rd2, %rd3;
"""
STORE_WORD = "st.global.b64 [%rd5], %rd9;"


def ran(body, given=None, shared_bytes=4096):
    """What 64 threads stored: (64,) uint64. Each has its place at %rd5, and given at %rd4."""
    given = np.zeros(THREADS, np.uint64) if given is None else given.view(np.uint64)
    out, memory = np.zeros(THREADS, np.uint64), GlobalMemory()
    parameters = {
        "a": memory.place(given.view(np.uint8)),
        "out": memory.place(out.view(np.uint8)),
    }
    program = parse(HEAD + body + "\nret;\n}\n")
    run(program, decoded(program), Launch(parameters, (1, 1, 1), memory, shared_bytes))
    return out


def f64(value):
    return int(np.float64(value).view(np.uint64))


def f32(value):
    return int(np.float32(value).view(np.uint32))


NAN, INF = float("nan"), float("inf")
TIE, SMALL = 1 + 2.0**-24, 1 + 2.0**-30
HIGH, LOW = (1 << 64) - 1, (1 << 32) - 1

ONE_EACH = [
    ("cvt.rn.f32.f64 %r9, %rd10", [f64(TIE)], f32(1)),
    ("cvt.rn.f32.f64 %r9, %rd10", [f64(1 + 3 * 2.0**-24)], f32(1 + 2.0**-22)),
    ("cvt.rn.f32.f64 %r9, %rd10", [f64(1.5 * 2.0**-149)], f32(2.0**-148)),
    ("cvt.rz.f32.f64 %r9, %rd10", [f64(-1 - 3 * 2.0**-24)], f32(-1 - 2.0**-23)),
    ("cvt.rm.f32.f64 %r9, %rd10", [f64(-TIE)], f32(-1 - 2.0**-23)),
    ("cvt.rp.f32.f64 %r9, %rd10", [f64(TIE)], f32(1 + 2.0**-23)),
    ("cvt.rn.f32.s64 %r9, %rd10", [(1 << 24) + 1], f32(2.0**24)),
    ("cvt.rn.f32.s64 %r9, %rd10", [(1 << 60) + (1 << 36) + 1], f32(2.0**60 + 2.0**37)),
    ("cvt.rn.f64.u64 %rd9, %rd10", [HIGH], f64(2.0**64)),
    ("cvt.rzi.s64.f64 %rd9, %rd10", [f64(-2.9)], -2 & HIGH),
    ("cvt.rzi.s64.f64 %rd9, %rd10", [f64(1e30)], (1 << 63) - 1),
    ("cvt.rzi.s64.f64 %rd9, %rd10", [f64(NAN)], 1 << 63),
    ("cvt.rzi.s32.f64 %r9, %rd10", [f64(-3e9)], 1 << 31),
    ("cvt.s64.s32 %rd9, %r10", [LOW], HIGH),
    ("cvt.u64.u32 %rd9, %r10", [LOW], LOW),
    ("fma.rn.f64 %rd9, %rd10, %rd10, %rd11", [f64(SMALL), f64(-1 - 2.0**-29)], f64(2.0**-60)),
    ("mul.rn.f64 %rd9, %rd10, %rd10", [f64(SMALL)], f64(1 + 2.0**-29)),
    ("div.rn.f64 %rd9, %rd10, %rd11", [f64(1), f64(-0.0)], f64(-INF)),
    ("max.f64 %rd9, %rd10, %rd11", [f64(-0.0), f64(0.0)], f64(0.0)),
    ("max.f64 %rd9, %rd10, %rd11", [f64(0.0), f64(-0.0)], f64(0.0)),
    ("min.f64 %rd9, %rd10, %rd11", [f64(0.0), f64(-0.0)], f64(-0.0)),
    ("max.f64 %rd9, %rd10, %rd11", [f64(NAN), f64(-3)], f64(-3)),
    ("neg.f64 %rd9, %rd10", [f64(0.0)], f64(-0.0)),
    ("copysign.f64 %rd9, %rd10, %rd11", [f64(-0.0), f64(3)], f64(-3)),
    ("setp.neu.f64 %p1, %rd10, %rd11", [f64(NAN), f64(1)], 1),
    ("setp.ne.f64 %p1, %rd10, %rd11", [f64(NAN), f64(1)], 0),
    ("setp.geu.f64 %p1, %rd10, %rd11", [f64(0), f64(1)], 0),
    ("setp.eq.f64 %p1, %rd10, %rd11", [f64(0.0), f64(-0.0)], 1),
    ("max.relu.s32 %r9, %r10, -5", [LOW], 0),
    ("setp.lt.s32 %p1, %r10, 0", [LOW], 1),
    ("setp.lt.u32 %p1, %r10, 1", [LOW], 0),
    ("div.s64 %rd9, %rd10, %rd11", [-7 & HIGH, 2], -3 & HIGH),
    ("rem.s64 %rd9, %rd10, %rd11", [-7 & HIGH, 2], -1 & HIGH),
    ("mul.lo.s64 %rd9, %rd10, %rd10", [(1 << 63) | 3], 9),
    ("mad.wide.s32 %rd9, %r10, -2, %rd11", [LOW, 5], 7),
    ("shr.s64 %rd9, %rd10, 99", [1 << 63], HIGH),
    ("shr.u32 %r9, %r10, 32", [LOW], 0),
    ("shl.b32 %r9, %r10, 31", [3], 1 << 31),
    ("bfe.u32 %r9, %r10, 4, 8", [0xABCD], 0xBC),
    ("bfe.s32 %r9, %r10, 4, 8", [0xABCD], 0xFFFF_FFBC),
    ("prmt.b32 %r9, %r10, %r11, 0x3340U", [0x0302_0180, 0x1312_1190], 0x0303_9080),
    ("prmt.b32 %r9, %r10, %r11, 0x7608", [0x0302_0180, 0x1312_1190], 0x1312_80FF),
    ("lop3.b32 %r9, %r10, %r11, -1, 0x78", [12, 10], 12 ^ 0xFFFF_FFFF & 10 & LOW),
    ("mov.b64 {_, %r9}, %rd10", [0x1234_5678_0000_0000], 0x1234_5678),
    ("mov.b64 %rd9, {%r10, %r11}", [1, 2], (2 << 32) | 1),
    ("selp.b32 %r9, 3, 4, %p0", [0], 4),
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "given", "expected"), ONE_EACH, ids=str)
def test_an_instruction_gives_what_the_isa_says(instruction, given, expected):
    first, second = (*given, 0)[:2]
    body = f"""
        mov.b64 %rd10, {first};
        mov.b64 %rd11, {second};
        cvt.u32.u64 %r10, %rd10;
        cvt.u32.u64 %r11, %rd11;
        setp.ne.b64 %p0, %rd10, %rd10;
        {instruction};"""
    target = instruction.replace("{_, ", "").split()[1].strip(",}")
    if target.startswith("%p"):
        body += "selp.b64 %rd9, 1, 0, %p1;"
    elif not target.startswith("%rd"):
        body += "cvt.u64.u32 %rd9, %r9;"
    assert set(ran(body + STORE_WORD).tolist()) == {expected}


def test_threads_that_go_round_a_loop_unequally_often_meet_again():
    body = f"""
        mov.b64 %rd9, 0;
        mov.b32 %r2, 0;
$again:
        setp.ge.u32 %p1, %r2, %r1;
        @%p1 bra $done;
        add.s32 %r2, %r2, 1;
        cvt.u64.u32 %rd6, %r2;
        add.s64 %rd9, %rd9, %rd6;
        bra.uni $again;
$done:
        bar.sync 0;
        {STORE_WORD}"""
    thread = np.arange(THREADS)
    assert (ran(body) == thread * (thread + 1) // 2).all()


def test_threads_that_a_condition_divides_meet_again():
    body = f"""
        mov.b64 %rd9, 1;
        setp.lt.u32 %p1, %r1, 9;
        @%p1 bra $few;
        mov.b64 %rd9, 2;
        bra.uni $done;
$few:
        mov.b64 %rd9, 3;
$done:
        bar.sync 0;
        add.s64 %rd9, %rd9, 10;
        {STORE_WORD}"""
    assert ran(body).tolist() == [13] * 9 + [12] * 55


EXCHANGES = {
    "bfly.b32 %r9, %r1, 3, 31": lambda lane: lane ^ 3,
    "up.b32 %r9, %r1, 3, 0": lambda lane: lane - 3 if lane >= 3 else lane,
    "down.b32 %r9, %r1, 3, 31": lambda lane: lane + 3 if lane < 29 else lane,
    "idx.b32 %r9, %r1, 5, 31": lambda lane: 5,
    "bfly.b32 %r9, %r1, 8, 6175": lambda lane: lane ^ 8 if lane & 8 else lane,  # of eights
}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_lanes_of_a_warp_take_each_other_s_values(exchange):
    body = f"shfl.sync.{exchange}, -1; cvt.u64.u32 %rd9, %r9; {STORE_WORD}"
    expected = [32 * (n // 32) + EXCHANGES[exchange](n % 32) for n in range(THREADS)]
    assert ran(body).tolist() == expected


def test_a_copy_is_there_once_it_was_waited_for_and_not_before():
    copied = """
        mov.b32 %r2, global_smem;
        mad.wide.u32 %rd6, %r1, 8, 0;
        cvt.u32.u64 %r3, %rd6;
        add.s32 %r2, %r2, %r3;
        mov.b64 %rd7, 7;
        st.shared.b64 [%r2], %rd7;
        cp.async.ca.shared.global [%r2 + 0], [%rd4 + 0], 0x8, 8;
        cp.async.commit_group;
        cp.async.wait_group """
    loaded = "; ld.shared.b64 %rd9, [%r2];" + STORE_WORD
    given = np.arange(THREADS, dtype=np.uint64) + np.uint64(100)
    assert (ran(copied + "0" + loaded, given) == given).all()
    assert (ran(copied + "1" + loaded, given) == 7).all()


def test_a_matrix_product_of_a_warp_is_laid_out_as_the_isa_says():
    rng = np.random.default_rng(1)
    a, b = rng.integers(-128, 128, (16, 32)), rng.integers(-128, 128, (32, 8))
    words = np.zeros((THREADS, 8), np.int8)
    outs = []
    for lane in range(32):  # figures of "Matrix fragments for mma.m16n8k32"
        for part in range(4):
            row, column = lane // 4 + 8 * (part % 2), lane % 4 * 4 + 16 * (part // 2)
            words[lane + 32 * (part // 2), 4 * (part % 2) :][:4] = a[row, column : column + 4]
    given = words.view(np.uint64).reshape(-1)
    second = np.zeros((THREADS, 8), np.int8)
    for lane in range(32):
        for part in range(2):
            row = lane % 4 * 4 + 16 * part
            second[lane, 4 * part :][:4] = b[row : row + 4, lane // 4]
    both = np.concatenate([given, second.view(np.uint64).reshape(-1)])
    for part in range(4):
        body = f"""
            and.b32 %r2, %r1, 31;
            mul.wide.u32 %rd6, %r2, 8;
            add.s64 %rd6, %rd1, %rd6;
            ld.global.v2.b32 {{%r11, %r12}}, [%rd6];
            ld.global.v2.b32 {{%r13, %r14}}, [%rd6 + 256];
            ld.global.v2.b32 {{%r15, %r16}}, [%rd6 + 512];
            mov.b32 %r20, 0;
            mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32
                {{%r21, %r22, %r23, %r24}}, {{%r11, %r12, %r13, %r14}}, {{%r15, %r16}},
                {{%r20, %r20, %r20, %r20}};
            cvt.s64.s32 %rd9, %r{21 + part};
            {STORE_WORD}""".replace("\n                {", " {")
        outs.append(ran(body, both).view(np.int64)[:32])
    expected = a @ b
    for lane in range(32):
        for part in range(4):
            at = lane // 4 + 8 * (part // 2), lane % 4 * 2 + part % 2
            assert outs[part][lane] == expected[at]


REFUSED = {
    "add.f64, frobnicate.b32": "frobnicate.b32 %r2; add.f64 %rd9, %rd3, %rd3;",
    "unknown directive": ".surprise 1;",
    "are in no tensor": "st.global.b64 [%rd5 + 512], %rd3;",
    "not a multiple of 8": "st.global.b64 [%rd5 + 4], %rd3;",
    "never written": "add.s32 %r2, %r1, %r77;",
    "beyond 4096 of shared memory": "st.shared.b32 [global_smem + 4096], %r1;",
    "only a part of some 64": "setp.lt.u32 %p1, %r1, 32; @%p1 bra $on; bar.sync 0; $on:",
    "only a part of some 32": "setp.lt.u32 %p1, %r1, 9; @%p1 redux.sync.max.s32 %r2, %r1, -1;",
}  # fmt: skip


@pytest.mark.parametrize(("message", "body"), REFUSED.items(), ids=list(REFUSED))
def test_what_is_not_known_or_a_card_would_not_allow_is_named(message, body):
    with pytest.raises(PtxError, match=message):
        ran("\n".join(body.replace(";", ";\n").split("\n")))
