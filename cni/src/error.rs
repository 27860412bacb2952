//! The one JSON object that a failed verb prints.

use causeway::{
    apiserver::conflist::ConflistError,
    attachments::DisconnectError,
    datapath::DatapathError,
    durable::LockError,
    endpoints::EndpointsError,
    ipam::{IpamError, pool::PoolError, store::StoreError},
    links::LinkError,
    node::NodeError,
};
use serde_json::{Value, json};

/// Codes of the CNI specification, and the incumbent's own.
pub(crate) mod code {
    /// The version of the configuration is not supported.
    pub(crate) const VERSION: u32 = 1;
    /// The environment is wrong; the message names the variables.
    pub(crate) const ENVIRONMENT: u32 = 4;
    /// Standard input or output failed.
    pub(crate) const IO: u32 = 5;
    /// The configuration cannot be decoded.
    pub(crate) const DECODE: u32 = 6;
    /// The configuration is invalid.
    pub(crate) const CONFIGURATION: u32 = 7;
    /// The namespace is invalid.
    pub(crate) const NETNS: u32 = 8;
    /// Try again: locks, state files, and what DEL could not finish.
    pub(crate) const TRY_AGAIN: u32 = 11;
    /// STATUS: a pod cannot be added.
    pub(crate) const NOT_AVAILABLE: u32 = 50;
    /// STATUS: a pod cannot be added, and those that are there may be cut off.
    pub(crate) const LIMITED_CONNECTIVITY: u32 = 51;
    /// Anything else in the plug-in.
    pub(crate) const PLUGIN: u32 = 100;
    /// The incumbent's code for an endpoint that exists already.
    pub(crate) const INTERNAL: u32 = 999;
}

/// Why a verb failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniError {
    /// One of [`code`].
    pub(crate) code: u32,
    /// What went wrong, where, and how to mend it.
    pub(crate) msg: String,
    /// More, for whoever looks closer; may be empty.
    pub(crate) details: String,
    /// Whether there would be an address if somebody gave one back.
    pub(crate) is_exhaustion: bool,
}

impl CniError {
    pub(crate) fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
            is_exhaustion: false,
        }
    }

    /// The result that nobody got.
    pub(crate) fn unprinted(error: &std::io::Error) -> Self {
        Self::new(code::IO, format!("cannot print the result: {error}"))
    }

    pub(crate) fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Puts what was attempted before the message.
    pub(crate) fn during(mut self, attempt: &str) -> Self {
        self.msg = format!("{attempt}: {}", self.msg);
        self
    }

    /// Adds a line to the details.
    pub(crate) fn and(mut self, more: &str) -> Self {
        if !self.details.is_empty() {
            self.details.push_str("; ");
        }
        self.details.push_str(more);
        self
    }

    /// The object to print, in the version of the configuration.
    pub(crate) fn to_json(&self, version: &str) -> Value {
        let mut object = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object
    }
}

impl From<IpamError> for CniError {
    fn from(error: IpamError) -> Self {
        match error {
            IpamError::Pool { source, details } => Self {
                is_exhaustion: source == PoolError::NoAvailableAddresses,
                ..Self::new(code::PLUGIN, source.to_string()).with_details(details)
            },
            IpamError::Store(error) => error.into(),
            error @ IpamError::Source(_) => Self::new(code::CONFIGURATION, error.to_string()),
            error @ IpamError::NoList { .. } => Self::new(code::PLUGIN, error.to_string()),
        }
    }
}

impl From<StoreError> for CniError {
    fn from(error: StoreError) -> Self {
        Self::new(code::TRY_AGAIN, error.to_string())
    }
}

impl From<EndpointsError> for CniError {
    fn from(error: EndpointsError) -> Self {
        Self::new(code::TRY_AGAIN, error.to_string())
    }
}

impl From<LockError> for CniError {
    fn from(error: LockError) -> Self {
        Self::new(code::TRY_AGAIN, error.to_string())
    }
}

impl From<DisconnectError> for CniError {
    fn from(error: DisconnectError) -> Self {
        match error {
            DisconnectError::Store(error) => error.into(),
            DisconnectError::Endpoints(error) => error.into(),
            DisconnectError::Link(error) => error.into(),
            DisconnectError::Datapath(error) => error.into(),
            error @ DisconnectError::Incomplete(_) => Self::new(code::TRY_AGAIN, error.to_string()),
        }
    }
}

impl From<LinkError> for CniError {
    fn from(error: LinkError) -> Self {
        Self::new(code::PLUGIN, error.to_string())
    }
}

impl From<NodeError> for CniError {
    fn from(error: NodeError) -> Self {
        Self::new(code::PLUGIN, error.to_string())
    }
}

impl From<ConflistError> for CniError {
    fn from(error: ConflistError) -> Self {
        Self::new(code::PLUGIN, error.to_string())
    }
}

impl From<DatapathError> for CniError {
    fn from(error: DatapathError) -> Self {
        Self::new(code::PLUGIN, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_object_with_details_only_where_there_are_some() {
        let error = CniError::new(7, "bad name").during("cannot parse");
        assert_eq!(
            error.to_json("0.3.0"),
            json!({ "cniVersion": "0.3.0", "code": 7, "msg": "cannot parse: bad name" })
        );
        let error = error.and("one").and("two");
        assert_eq!(error.to_json("1.0.0")["details"], "one; two");
    }
}
