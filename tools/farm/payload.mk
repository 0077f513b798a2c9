# A payload made by items, each of which Make makes once and keeps:
#
#   make -f payload.mk -j4 OLD=v1 NEW=v2 KEY=release.pem OUT=ota.zip
#
# RESULTS may be a folder that builds share: an item's name is the hash of all that its
# result depends on. A failed item is made again by the same command, alone.

COWTOOL ?= cowtool
OLD ?=
NEW ?= new
KEY ?=
OUT ?= payload.bin
RESULTS ?= results
PLANFLAGS ?=
JOINFLAGS ?=

IMAGES = --new $(NEW) $(if $(OLD),--old $(OLD))

$(OUT): items
	$(MAKE) -f $(firstword $(MAKEFILE_LIST)) COWTOOL='$(COWTOOL)' OLD='$(OLD)' NEW='$(NEW)' RESULTS='$(RESULTS)' made
	$(COWTOOL) payload join -o $@ $(if $(KEY),--key $(KEY)) $(JOINFLAGS) --plan plan.json --results $(RESULTS) $(IMAGES)

items:
	$(COWTOOL) payload plan -o plan.json $(if $(OLD),--old $(OLD)) $(PLANFLAGS) $(NEW) > $@.part
	mv $@.part $@

.PHONY: made
made: $(addprefix $(RESULTS)/,$(shell cat items 2>/dev/null))

$(RESULTS)/%:
	$(COWTOOL) payload run --workers 1 --plan plan.json --results $(RESULTS) $(IMAGES) $*
