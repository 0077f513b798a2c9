"""A payload as a target: a plan in so many parts, each an action that the build's cache
keeps, and a join.

    load(":payload.bzl", "payload")

    payload(name = "ota", old = ["v1/system.img"], new = ["v2/system.img"], parts = 8)
"""

def _folder(files):
    return files[0].dirname

def _payload_impl(ctx):
    tool = ctx.executable.cowtool
    plan = ctx.actions.declare_file(ctx.label.name + ".plan.json")
    images = ctx.files.new + ctx.files.old
    new, old = _folder(ctx.files.new), _folder(ctx.files.old) if ctx.files.old else ""
    common = ["--new", new] + (["--old", old] if old else [])
    ctx.actions.run_shell(
        tools = [tool],
        inputs = images,
        outputs = [plan],
        command = "%s payload plan -q -o %s %s %s > /dev/null" % (tool.path, plan.path, "--old " + old if old else "", new),
    )
    parts = []
    for i in range(ctx.attr.parts):
        part = ctx.actions.declare_directory("%s.part%d" % (ctx.label.name, i))
        parts.append(part)
        ctx.actions.run(
            executable = tool,
            inputs = images + [plan],
            outputs = [part],
            arguments = ["payload", "run", "--plan", plan.path, "--results", part.path, "--part", str(i), "--of", str(ctx.attr.parts)] + common,
        )
    out = ctx.actions.declare_file(ctx.label.name + ".bin")
    ctx.actions.run_shell(
        tools = [tool],
        inputs = images + [plan] + parts,
        outputs = [out],
        command = "mkdir results && cp -r %s results/ && %s payload join -q -o %s --plan %s --results results %s" % (
            " ".join([p.path + "/." for p in parts]),
            tool.path,
            out.path,
            plan.path,
            " ".join(common),
        ),
    )
    return [DefaultInfo(files = depset([out]))]

payload = rule(
    implementation = _payload_impl,
    attrs = {
        "new": attr.label_list(allow_files = [".img"], mandatory = True),
        "old": attr.label_list(allow_files = [".img"]),
        "parts": attr.int(default = 4),
        "cowtool": attr.label(default = "//cmd/cowtool", executable = True, cfg = "exec"),
    },
)
