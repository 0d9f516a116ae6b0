//! What was sent and is not answered.

use super::text::Text;

/// Who sent a message to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The client: the answers are the client's.
    Client,
    /// The proxy itself: the answers are not to be passed on.
    Proxy,
}

/// What is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A simple query: answered up to ReadyForQuery.
    Query,
    /// Answered with ParseComplete.
    Parse,
    /// Answered with BindComplete.
    Bind,
    /// Answered with ParameterDescription and RowDescription or NoData.
    DescribeStatement,
    /// Answered with RowDescription or NoData.
    DescribePortal,
    /// Answered with rows and CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// Answered with CloseComplete.
    CloseStatement,
    /// Answered with CloseComplete.
    ClosePortal,
    /// Answered with ReadyForQuery.
    Sync,
    /// Answered up to ReadyForQuery.
    FunctionCall,
    /// The end of a COPY from the client, sent ahead: not answered by itself.
    CopyEnd,
}

/// A message that was sent and is not, or not yet fully, answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What it is.
    pub kind: Kind,
    /// Who sent it.
    pub whose: Whose,
    /// What runs, of a Query or an Execute.
    pub text: Text,
    /// Statements of it that are complete; of a DescribeStatement, whether its parameters were
    /// described.
    pub completed: u32,
    /// Was an error passed on for it? Only ReadyForQuery is missing then.
    pub failed: bool,
    /// Of a Parse or a Close: the statement's name, if it has one.
    pub(super) name: Option<Box<[u8]>>,
    /// Of a Parse: its number.
    pub(super) number: u32,
}

impl Pending {
    pub(super) fn new(kind: Kind, whose: Whose, text: Text) -> Self {
        Self { kind, whose, text, completed: 0, failed: false, name: None, number: 0 }
    }

    pub(super) fn name(&self) -> &[u8] {
        self.name.as_deref().unwrap_or_default()
    }

    /// Does ReadyForQuery answer it?
    pub fn ends_cycle(&self) -> bool {
        matches!(self.kind, Kind::Query | Kind::Sync | Kind::FunctionCall)
    }

    /// Was all passed on but ReadyForQuery, and is what it did settled?
    pub fn is_answered(&self) -> bool {
        match self.kind {
            // The one statement of a simple query is complete when it is committed.
            Kind::Query => self.failed || (self.text.statements <= 1 && self.completed > 0),
            Kind::Sync | Kind::FunctionCall => self.failed,
            _ => false,
        }
    }
}
