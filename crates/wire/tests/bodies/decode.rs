//! Any body: decoding neither panics nor reads beyond it, and what it gives is bounded by it.

use sempre_wire::pg::{
    Authentication, Backend, BindNames, Fields, FirstHead, FirstPacket, Frontend, Parse,
    SaslInitialResponse, frontend,
};

/// All decoders over one body.
pub fn any(tag: u8, body: &[u8]) {
    match Frontend::decode(tag, body) {
        Ok(Frontend::Bind(bind)) => {
            assert!(bind.parameters.count() * 4 <= body.len());
            assert!((bind.formats.len() + bind.result_formats.len()) * 2 <= body.len());
            let names = BindNames::decode(body).expect("a Bind has names");
            assert_eq!((names.portal, names.statement), (bind.portal, bind.statement));
            assert_eq!(&body[names.size..], bind.behind_names);
        }
        Ok(Frontend::Parse(parse)) => {
            assert_eq!(parse.types.iter().count(), parse.types.len());
            assert_eq!(Parse::name_of(body), Ok(parse.name));
        }
        _ => {}
    }
    match Backend::decode(tag, body) {
        Ok(Backend::DataRow(columns)) => {
            let announced = columns.len();
            assert_eq!(columns.count(), announced);
        }
        Ok(Backend::ErrorResponse(fields) | Backend::NoticeResponse(fields)) => {
            assert!(fields.iter().count() <= body.len());
            let _ = (fields.code(), fields.is_fatal(), fields.is_cancelled_sync_wait());
        }
        Ok(Backend::Authentication(Authentication::Sasl(mechanisms))) => {
            assert!(mechanisms.iter().count() <= body.len());
        }
        _ => {}
    }
    assert!(Fields::of_head(body).iter().count() <= body.len());
    let _ = frontend::password(body);
    let _ = SaslInitialResponse::decode(body);
    let _ = FirstPacket::parse(body);
    if let Some(head) = body.first_chunk() {
        let _ = FirstHead::read(*head);
    }
}
