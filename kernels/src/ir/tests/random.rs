//! Random kernels that are valid by construction, drawn from a list of choices.

use crate::ir::*;

struct Choices<'c> {
    bytes: &'c [u8],
    at: usize,
}

impl Choices<'_> {
    fn next(&mut self, below: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        usize::from(byte) % below.max(1)
    }

    fn is_spent(&self) -> bool {
        self.at >= self.bytes.len()
    }
}

/// Values and variables in scope, by type.
#[derive(Clone, Default)]
struct Scope {
    words: Vec<Val>,
    floats: Vec<Val>,
    vectors: Vec<Val>,
    vars: Vec<Var>,
}

struct Generator<'c> {
    choices: Choices<'c>,
    arrays: Vec<ArrayRef>,
    floats: ArrayRef,
    vectors: ArrayRef,
    shared: ArrayRef,
    rich: bool,
}

/// A builder holding a random kernel: integers only, or with floats, vectors, barriers and collectives if `rich`.
pub(crate) fn random_builder(bytes: &[u8], rich: bool) -> Builder {
    let b = Builder::new("random", [8, 4, 1]);
    b.doc("Drawn from \"choices\", with a back\\slash.");
    let arrays = vec![b.output("a", Type::U32), b.input("in", Type::U32), b.private("p", Type::U32, 8)];
    let floats = b.output("floats", Type::F32);
    let vectors = b.output("vectors", Type::VEC4_F32);
    let shared = b.workgroup("shared", Type::U32, 16);
    let mut scope = Scope::default();
    if rich {
        let params = b.uniforms("params", &[("n", Scalar::U32), ("scale", Scalar::F32)]);
        scope.words.push(b.field(params, "n"));
        scope.floats.push(b.field(params, "scale"));
    }
    scope.words.push(b.global_x());
    let choices = Choices { bytes, at: 0 };
    let mut generator = Generator { choices, arrays, floats, vectors, shared, rich };
    generator.block(&b, scope, 0, true);
    b
}

/// The finished random kernel.
pub(crate) fn random_module(bytes: &[u8], rich: bool) -> Module {
    random_builder(bytes, rich).finish().unwrap()
}

impl Generator<'_> {
    fn word(&mut self, b: &Builder, scope: &Scope) -> Val {
        let (n, v) = (scope.words.len(), scope.vars.len());
        match self.choices.next(n + v + 2) {
            i if i < n => scope.words[i],
            i if i < n + v => b.get(scope.vars[i - n]),
            _ => b.u32(self.choices.next(9) as u32),
        }
    }

    fn float(&mut self, b: &Builder, scope: &Scope) -> Val {
        match self.choices.next(scope.floats.len() + 1) {
            i if i < scope.floats.len() => scope.floats[i],
            _ => b.f32(self.choices.next(200) as f32 * 0.37 - 30.0),
        }
    }

    fn vector(&mut self, b: &Builder, scope: &Scope) -> Val {
        match self.choices.next(scope.vectors.len() + 1) {
            i if i < scope.vectors.len() => scope.vectors[i],
            _ => b.load(self.vectors, self.choices.next(4) as u32),
        }
    }

    fn cond(&mut self, b: &Builder, scope: &Scope) -> Val {
        let (x, y) = (self.word(b, scope), self.word(b, scope));
        match self.choices.next(3) {
            0 => b.lt(x, y),
            1 => b.ge(x, y),
            _ => b.eq(x, y),
        }
    }

    fn block(&mut self, b: &Builder, mut scope: Scope, depth: u32, uniform: bool) {
        let count = 2 + self.choices.next(10);
        for _ in 0..count {
            if self.choices.is_spent() {
                break;
            }
            self.step(b, &mut scope, depth, uniform);
        }
        let value = self.word(b, &scope);
        b.store(self.arrays[0], depth, value);
    }

    fn step(&mut self, b: &Builder, scope: &mut Scope, depth: u32, uniform: bool) {
        let kinds = if self.rich { 16 } else { 10 };
        match self.choices.next(kinds) {
            0 => {
                let index = self.word(b, scope);
                let array = self.arrays[self.choices.next(3)];
                let index = b.bit_and(index, 7);
                scope.words.push(b.load(array, index));
            }
            1 | 2 => {
                let (x, y) = (self.word(b, scope), self.word(b, scope));
                let value = match self.choices.next(7) {
                    0 => b.add(x, y),
                    1 => b.mul(x, y),
                    2 => b.sub(x, y),
                    3 => b.min(x, y),
                    4 => b.bit_xor(x, y),
                    5 => b.bit_and(x, y),
                    _ => b.max(x, y),
                };
                scope.words.push(value);
            }
            3 => {
                let cond = self.cond(b, scope);
                let (x, y) = (self.word(b, scope), self.word(b, scope));
                scope.words.push(b.select(cond, x, y));
            }
            4 => {
                let value = self.word(b, scope);
                scope.vars.push(b.var("v", Type::U32, value));
            }
            5 => {
                let value = self.word(b, scope);
                if !scope.vars.is_empty() {
                    let var = scope.vars[self.choices.next(scope.vars.len())];
                    b.set(var, value);
                }
            }
            6 => {
                let (index, value) = (self.word(b, scope), self.word(b, scope));
                let array = self.arrays[[0, 2][self.choices.next(2)]];
                let index = b.bit_and(index, 7);
                b.store(array, index, value);
            }
            7 => {
                let value = self.word(b, scope);
                scope.words.push(b.let_("named", value));
            }
            8 if depth < 3 => {
                let end = self.choices.next(5) as u32;
                let unroll = self.choices.next(2) == 0;
                let end = if self.choices.next(3) == 0 {
                    let word = self.word(b, scope);
                    b.min(word, end)
                } else {
                    b.u32(end)
                };
                let uniform = uniform && b.const_u32(end).is_some();
                let inner = scope.clone();
                let body = |b: &Builder, i: Val| {
                    let mut inner = inner;
                    inner.words.push(i);
                    self.block(b, inner, depth + 1, uniform);
                };
                if unroll { b.for_unrolled("i", 0, end, 1, body) } else { b.for_("i", 0, end, 1, body) }
            }
            9 if depth < 3 => {
                let cond = self.cond(b, scope);
                let uniform = uniform && b.literal_of(cond).is_some();
                let (then, otherwise) = (scope.clone(), scope.clone());
                if self.choices.next(2) == 0 {
                    b.if_(cond, |b| self.block(b, then, depth + 1, uniform));
                } else {
                    let generator = std::cell::RefCell::new(self);
                    b.if_else(
                        cond,
                        |b| generator.borrow_mut().block(b, then, depth + 1, uniform),
                        |b| generator.borrow_mut().block(b, otherwise, depth + 1, uniform),
                    );
                }
            }
            10 => self.float_step(b, scope),
            11 => self.vector_step(b, scope),
            12 => self.bits_step(b, scope),
            13 if uniform => b.barrier(),
            14 if uniform => {
                let value = self.word(b, scope);
                let op = [
                    Collective::Add,
                    Collective::Max,
                    Collective::ShuffleXor(2),
                    Collective::BroadcastFirst,
                    Collective::Broadcast(1),
                ];
                let op = op[self.choices.next(5)];
                scope.words.push(b.collective("s", op, value));
            }
            15 if uniform => {
                let index = self.choices.next(16) as u32;
                scope.words.push(b.uniform_load("u", self.shared, index));
            }
            _ => b.comment("nothing \"here\""),
        }
    }

    fn float_step(&mut self, b: &Builder, scope: &mut Scope) {
        let (x, y) = (self.float(b, scope), self.float(b, scope));
        let at = self.word(b, scope);
        let value = match self.choices.next(16) {
            0 => b.add(x, y),
            1 => b.mul(x, y),
            2 => b.sub(x, b.neg(y)),
            3 => b.fma(x, y, x),
            4 => b.erf(b.load(self.floats, at)),
            5 => b.tanh(b.load(self.floats, at)),
            6 => b.silu(b.load(self.floats, at)),
            7 => b.gelu_tanh(b.load(self.floats, at)),
            8 => b.clamp(x, -1.0, 1.0),
            9 => b.cast(Scalar::F32, at),
            10 => b.select(b.lt(x, y), x, y),
            11 => b.load(self.floats, at),
            12 => b.rcp(b.load(self.floats, at)),
            13 => b.select(b.or(b.and(b.lt(x, y), b.gt(x, 1.0)), b.not(b.eq(x, y))), x, y),
            14 => b.sub(b.mul(x, b.add(y, x)), b.div(b.load(self.floats, 1), b.mul(b.load(self.floats, at), 2.0))),
            _ => {
                b.store(self.floats, at, x);
                y
            }
        };
        scope.floats.push(value);
    }

    fn vector_step(&mut self, b: &Builder, scope: &mut Scope) {
        let (x, y, s) = (self.vector(b, scope), self.vector(b, scope), self.float(b, scope));
        let value = match self.choices.next(12) {
            0 => b.add(x, y),
            1 => b.mul(x, s),
            2 => b.fma(x, s, y),
            3 => b.vec4(s, b.lane(x, 1), b.dot(x, y), s),
            4 => b.erf(x),
            5 => b.tanh(x),
            6 => b.gelu_erf(x),
            7 => b.select(b.lt(x, s), x, 0.0),
            8 => b.cast(Scalar::F32, b.unpack_i8(b.bitcast(Scalar::U32, b.lane(x, 0)))),
            9 => b.cast(Scalar::F32, b.unpack_u8(b.bitcast(Scalar::U32, b.lane(x, 0)))),
            10 => b.sigmoid(x),
            _ => {
                b.store(self.vectors, 2, x);
                b.sub(y, x)
            }
        };
        scope.vectors.push(value);
        scope.floats.push(b.sum_lanes(value));
    }

    fn bits_step(&mut self, b: &Builder, scope: &mut Scope) {
        let (x, y) = (self.word(b, scope), self.word(b, scope));
        let value = match self.choices.next(9) {
            0 => b.shl(x, b.bit_and(y, 31)),
            1 => b.bit_or(b.shr(x, 4), b.bit_and(y, 0x0f0f_0f0f)),
            2 => b.cast(Scalar::U32, b.dot_i8(x, y)),
            3 => b.dot_u8(x, y),
            4 => b.pack_2x16_float(b.unpack_2x16_float(x)),
            5 => b.bitcast(Scalar::U32, b.bf16_high(b.add(x, self_index(b)))),
            6 => b.div(x, b.max(y, 1)),
            7 => b.rem(x, b.max(y, 1)),
            _ => b.add(b.bit_not(x), b.mul(b.add(x, y), b.sub(x, b.sub(y, x)))),
        };
        scope.words.push(value);
    }
}

fn self_index(b: &Builder) -> Val {
    b.add(b.local_index(), b.num_groups(Axis::X))
}
