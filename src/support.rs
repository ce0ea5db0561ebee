//! What several rooms need and none of them owns. The bottom of the house: it imports no other room.

pub(crate) mod address;
pub(crate) mod backoff;
pub(crate) mod braces;
pub(crate) mod causes;
pub(crate) mod clock;
pub(crate) mod form;
pub(crate) mod host;
pub(crate) mod network;
pub(crate) mod peer;
pub(crate) mod pem;
pub(crate) mod plain;
pub(crate) mod random;
pub(crate) mod seldom;
pub(crate) mod web;
pub(crate) mod words;
