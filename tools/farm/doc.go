// Package farm has examples of how a build farm makes payloads (docs/payload-create.md): a
// rule for Make, a Kubernetes indexed Job, and a rule for Bazel; and their tests.
package farm
