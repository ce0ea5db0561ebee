//! What several rooms need and none of them owns. The bottom of the house: it imports no other room.

pub mod backoff;
pub mod braces;
pub mod causes;
pub mod form;
pub mod network;
