//! Any messages in a SCRAM exchange: nobody gets in who does not know the secret, nothing panics.

use sempre_wire::pg::scram::{
    self, Client, ClientBinding, ScramError, Secret, Server, Verifier, end_point,
};

/// `first` and `second` are what the other side says.
pub fn any(first: &[u8], second: &[u8]) {
    // The server's end, for a user that is not.
    let verifier = Verifier::mock(b"user", b"secret");
    let nonce = [1; scram::NONCE_BYTES];
    for hash in [None, Some(&b"hash"[..])] {
        for mechanism in [scram::MECHANISM, scram::MECHANISM_PLUS] {
            let begun = Server::first(verifier.clone(), mechanism.as_bytes(), first, nonce, hash);
            if let Ok((server, answer)) = begun {
                assert!(answer.len() <= 2 * scram::MESSAGE_MAX);
                assert!(server.last(second).is_err());
            }
        }
    }
    // The client's end: an answer only to a server that took up the nonce, and no belief without
    // a signature.
    let keys = (scram::ClientKey([2; 32]), scram::ServerKey([3; 32]));
    let secret = Secret::Keys { client: &keys.0, server: Some(&keys.1) };
    let mut client = Client::new(nonce, ClientBinding::None);
    let answered = client.answer(first, secret).is_ok();
    assert!(client.finish(second).is_err() || !answered);
    let error = client.finish(second);
    assert!(
        !answered
            || matches!(
                error,
                Err(ScramError::Impostor | ScramError::Malformed(_) | ScramError::Refused)
            )
    );
    // Verifiers and certificates from anywhere.
    if let Ok(text) = std::str::from_utf8(first)
        && let Ok(verifier) = text.parse::<Verifier>()
    {
        assert_eq!(verifier.to_string().parse(), Ok(verifier));
    }
    let _ = end_point(first);
}
