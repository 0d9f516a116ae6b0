//! The network: two paths between any two members, each direction on its own.

use crate::{
    clock::{MS, Micros},
    rng::Rng,
};

/// Paths a member has.
pub const PATHS: usize = 2;

/// What the network does at present.
#[derive(Debug)]
pub struct Net {
    members: usize,
    cut: Vec<u16>,
    /// Messages lost, per mille.
    pub loss: u64,
    /// Messages that come twice, per mille.
    pub twice: u64,
    /// Messages that take up to `slow_us` longer, per mille.
    pub slow: u64,
    /// See `slow`.
    pub slow_us: Micros,
    /// Only to and from this member (none: everywhere). Uneven delays are the harder ones: what a
    /// slow holder believes is then older than what the others know.
    pub slow_at: Option<usize>,
    /// Whatever comes to this member takes so much longer; what it sends does not. Grants are then
    /// old when they arrive.
    pub late_at: Option<(usize, Micros)>,
}

impl Net {
    /// A network that works.
    pub fn new(members: usize) -> Self {
        let cut = vec![0; members * members * PATHS];
        Self { members, cut, loss: 0, twice: 0, slow: 0, slow_us: 0, slow_at: None, late_at: None }
    }

    fn at(&self, from: usize, to: usize, path: usize) -> usize {
        (from * self.members + to) * PATHS + path
    }

    /// Cuts one direction of one path (counted: it heals when every cut was mended).
    pub fn cut(&mut self, from: usize, to: usize, path: usize) {
        let at = self.at(from, to, path);
        self.cut[at] += 1;
    }

    /// Takes one cut back.
    pub fn mend(&mut self, from: usize, to: usize, path: usize) {
        let at = self.at(from, to, path);
        self.cut[at] = self.cut[at].saturating_sub(1);
    }

    /// Everything works again.
    pub fn heal(&mut self) {
        *self = Self::new(self.members);
    }

    /// Does this direction of this path work?
    pub fn open(&self, from: usize, to: usize, path: usize) -> bool {
        from == to || self.cut[self.at(from, to, path)] == 0
    }

    /// Can the two talk, both ways, on some path?
    pub fn talk(&self, a: usize, b: usize) -> bool {
        (0..PATHS).any(|p| self.open(a, b, p) && self.open(b, a, p))
    }

    /// How long a message takes.
    pub fn delay(&self, from: usize, to: usize, rng: &mut Rng) -> Micros {
        let mut delay = rng.range(100, 2 * MS);
        let here = self.slow_at.is_none_or(|m| m == from || m == to);
        if self.slow > 0 && here && rng.chance(self.slow) {
            delay += rng.range(0, self.slow_us);
        }
        if let Some((m, late)) = self.late_at
            && m == to
        {
            delay += late;
        }
        delay
    }
}
