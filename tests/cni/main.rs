//! The CNI contract: configuration on standard input, environment, exact results and errors.
