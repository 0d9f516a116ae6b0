//! Reading the fields of a message's body.

/// A message whose fields do not fit its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message} message: {problem}")]
pub struct DecodeError {
    /// Which message.
    pub message: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The rest of a body that is not read yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    message: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'static str, body: &'a [u8]) -> Self {
        Self { rest: body, message }
    }

    pub(crate) fn error(&self, problem: &'static str) -> DecodeError {
        DecodeError { message: self.message, problem }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) =
            self.rest.split_at_checked(count).ok_or(self.error("it is too short"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(self.error("it is too short"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    /// A string up to its NUL, which is taken too.
    pub(crate) fn string(&mut self) -> Result<&'a [u8], DecodeError> {
        let end = self
            .rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(self.error("a string has no terminator"))?;
        let (string, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        Ok(string)
    }

    /// A list of 16-bit numbers behind their count.
    pub(crate) fn list16(&mut self) -> Result<List<'a, 2>, DecodeError> {
        let count = usize::from(self.u16()?);
        Ok(List(self.bytes(count * 2)?))
    }

    /// A list of 32-bit numbers behind their (16-bit) count.
    pub(crate) fn list32(&mut self) -> Result<List<'a, 4>, DecodeError> {
        let count = usize::from(self.u16()?);
        Ok(List(self.bytes(count * 4)?))
    }

    /// Values, each behind its length, -1 for NULL, all behind their (16-bit) count.
    pub(crate) fn values(&mut self) -> Result<Values<'a>, DecodeError> {
        let count = self.u16()?;
        let start = self.rest;
        for _value in 0..count {
            match self.i32()? {
                -1 => {}
                length => {
                    let length =
                        usize::try_from(length).map_err(|_| self.error("a length is negative"))?;
                    self.bytes(length)?;
                }
            }
        }
        Ok(Values { left: count, rest: &start[..start.len() - self.rest.len()] })
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error("it is too long")) }
    }
}

/// Big-endian numbers of `N` bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List<'a, const N: usize>(&'a [u8]);

impl<'a, const N: usize> List<'a, N> {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / N
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a, N> {
        self.0.chunks_exact(N).map(|bytes| {
            bytes.iter().fold(0_u32, |number, byte| number.wrapping_shl(8) | u32::from(*byte))
        })
    }
}

/// Values (parameters or columns); `None` is NULL. Their lengths were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Values<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Iterator for Values<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else { return Some(None) };
        let (value, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some(Some(value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Values<'_> {}
