//! What the text of a statement lets one expect.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of expectations. They err on the side of "maybe".
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Hints(u16);

impl Hints {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Settings of the session may change (SET, RESET, `set_config`, DISCARD).
    pub const SETTINGS: Self = Self(1);
    /// What it listens to may change (LISTEN, UNLISTEN, DISCARD).
    pub const LISTENING: Self = Self(1 << 1);
    /// The statements prepared by SQL may change (PREPARE, DEALLOCATE, DISCARD).
    pub const PREPARED: Self = Self(1 << 2);
    /// Something temporary is named.
    pub const TEMPORARY: Self = Self(1 << 3);
    /// A cursor may outlive its transaction (WITH HOLD).
    pub const HELD: Self = Self(1 << 4);
    /// Advisory locks.
    pub const ADVISORY: Self = Self(1 << 5);
    /// Anything may happen (DO, CALL, LOAD, a text that was not understood).
    pub const ANYTHING: Self = Self(1 << 6);
    /// A transaction block begins (BEGIN, START TRANSACTION).
    pub const BEGINS: Self = Self(1 << 7);
    /// It is to be read-only.
    pub const READ_ONLY: Self = Self(1 << 8);
    /// A transaction block is committed (COMMIT, END).
    pub const COMMITS: Self = Self(1 << 9);
    /// A transaction block is rolled back as a whole (ROLLBACK, ABORT).
    pub const ROLLS_BACK: Self = Self(1 << 10);
    /// And the next one begins at once (AND CHAIN).
    pub const CHAINS: Self = Self(1 << 11);
    /// Two-phase commit: PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    pub const TWO_PHASE: Self = Self(1 << 12);
    /// Outside a transaction block it may commit by itself, before its end.
    pub const SELF_COMMITS: Self = Self(1 << 13);

    /// All after which the session's state is no longer known.
    pub const STATE: Self = Self(0b111_1111);

    pub(super) const fn bits(self) -> u16 {
        self.0
    }

    pub(super) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Are some of `other` in it?
    pub fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Is it empty?
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Hints {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Hints {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Hints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "settings",
            "listening",
            "prepared",
            "temporary",
            "held",
            "advisory",
            "anything",
            "begins",
            "read-only",
            "commits",
            "rolls back",
            "chains",
            "two-phase",
            "self-commits",
        ];
        let set = NAMES.iter().enumerate().filter(|(bit, _)| self.0 & 1 << bit != 0);
        f.debug_set().entries(set.map(|(_, name)| name)).finish()
    }
}
