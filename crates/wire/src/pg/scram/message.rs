//! The pieces that SCRAM's messages are made of.

use super::{MESSAGE_MAX, ScramError};

/// Reads `name=value` attributes, separated by commas.
pub(super) struct Attributes<'a> {
    rest: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(rest: &'a str) -> Self {
        Self { rest: Some(rest) }
    }

    /// The next one, which must have this name.
    pub(super) fn expect(
        &mut self,
        name: char,
        problem: &'static str,
    ) -> Result<&'a str, ScramError> {
        match self.next() {
            Some((known, value)) if known == name => Ok(value),
            _ => Err(ScramError::Malformed(problem)),
        }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (char, &'a str);

    /// `None` at the end and at what is no attribute.
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        let (attribute, rest) = match rest.split_once(',') {
            Some((attribute, rest)) => (attribute, Some(rest)),
            None => (rest, None),
        };
        let (name, value) = attribute.split_once('=')?;
        self.rest = rest;
        let mut letters = name.chars();
        match (letters.next(), letters.next()) {
            (Some(letter), None) if letter.is_ascii_alphabetic() => Some((letter, value)),
            _ => None,
        }
    }
}

/// A message as text.
pub(super) fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MESSAGE_MAX {
        return Err(ScramError::Malformed("it is too long"));
    }
    match std::str::from_utf8(message) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(ScramError::Malformed("it is not text")),
    }
}

/// A nonce has to be printable.
pub(super) fn nonce(nonce: &str) -> Result<&str, ScramError> {
    match !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(nonce),
        false => Err(ScramError::Malformed("non-printable characters in the nonce")),
    }
}

/// The beginning of the channel binding data of the mechanism with binding.
pub(super) const BOUND_HEADER: &str = "p=tls-server-end-point,,";
