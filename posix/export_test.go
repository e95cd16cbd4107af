package posix

// For the tests of package posix_test, which use package kumquat and so cannot be in this one.
var InNamespace = inNamespace
