//! How far the standby must be: asked from the primary, through a session that has nothing else to
//! do just now.

use super::{CATCH_UP_EVERY, CATCH_UP_WITHIN};
use crate::proxy::{
    attach::with_link,
    link::{Farewell, Link},
    pump::Loss,
    session::{Over, Session},
    talk::{Answers, Talk},
};
use sempre_model::Lsn;
use sempre_wire::pg::{Side, write};
use tokio::time::{self, Instant};

/// The client's unnamed statement is to stay.
const NAME: &[u8] = b"sempre_position";
/// A commit of its own, whose record everything that anybody has seen stands before. (Where the
/// primary is about to write may be behind what is not committed, and not sent until it is.)
const POSITION: &[u8] = b"select pg_catalog.pg_logical_emit_message(true, 'sempre', ''), \
    pg_catalog.set_config('synchronous_commit', 'local', true)";
const REPLAYED: &[u8] = b"select pg_catalog.pg_last_wal_replay_lsn()";

impl Session<'_> {
    /// Asks the primary for its position, on the session's own connection, between two transactions.
    pub(in crate::proxy) async fn locate(&mut self) -> Result<(), Over> {
        let Some(campaign) = self.proxy.campaigns.now() else { return Ok(()) };
        let Some(mut link) = self.link.take() else {
            campaign.tell_position(None);
            return Ok(());
        };
        let cut = link.ticket.cut.clone();
        let answers = with_link(&cut, ask(&mut link, POSITION)).await;
        self.link = Some(link);
        let Some(answers) = answers else {
            campaign.tell_position(None);
            return self.lost(Loss::Ended(Farewell::None)).await;
        };
        self.to_client.extend_from_slice(&answers.notifications);
        campaign.tell_position(position(&answers));
        Ok(())
    }
}

async fn ask(link: &mut Link, text: &[u8]) -> Option<Answers> {
    let mut question = Vec::new();
    write::close_statement(&mut question, NAME);
    write::parse(&mut question, NAME, text, &[]);
    write::bind(&mut question, b"", NAME, &[]);
    write::execute(&mut question, b"", 0);
    write::close_statement(&mut question, NAME);
    write::sync(&mut question);
    let mut talk = Talk::new(&mut link.stream, Side::Backend, std::mem::take(&mut link.kept));
    let answers = talk.ask(&question, 1).await.ok()?;
    link.kept = talk.rest();
    for (name, value) in &answers.parameters {
        link.reported(name, value);
    }
    Some(answers)
}

fn position(answers: &Answers) -> Option<Lsn> {
    answers.rows.first()?.first()?.as_ref()?.parse().ok()
}

/// Waits until the standby has replayed that.
pub(super) async fn catch_up(link: &mut Link, needed: Lsn) -> Option<()> {
    let until = Instant::now() + CATCH_UP_WITHIN;
    loop {
        let answers = ask(link, REPLAYED).await?;
        let replayed = answers.rows.first()?.first()?.as_ref()?.parse::<Lsn>().ok()?;
        if replayed >= needed {
            return Some(());
        }
        if Instant::now() >= until {
            return None;
        }
        time::sleep(CATCH_UP_EVERY).await;
    }
}
