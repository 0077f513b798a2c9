package main

const introspectionHead = `<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
`

// introspection is what the object says of itself.
const introspection = introspectionHead + `<node>
  <interface name="org.cowbird.Update1">
    <method name="Install">
      <arg name="source" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
    </method>
    <method name="Cancel"/>
    <method name="Merge"/>
    <method name="Rollback"/>
    <method name="MarkSuccessful"/>
    <method name="Follow"/>
    <method name="Unfollow"/>
    <signal name="Finished">
      <arg name="operation" type="s"/>
      <arg name="error" type="s"/>
    </signal>
    <property name="State" type="s" access="read"/>
    <property name="Slot" type="s" access="read"/>
    <property name="NextSlot" type="s" access="read"/>
    <property name="Slots" type="a{ss}" access="read"/>
    <property name="Successful" type="b" access="read"/>
    <property name="RebootNeeded" type="b" access="read"/>
    <property name="Operation" type="s" access="read"/>
    <property name="Percent" type="d" access="read"/>
    <property name="BytesDone" type="t" access="read"/>
    <property name="BytesTotal" type="t" access="read"/>
    <property name="SecondsLeft" type="t" access="read"/>
    <property name="Paused" type="b" access="read"/>
    <property name="SpaceUsed" type="t" access="read"/>
    <property name="SpaceFree" type="t" access="read"/>
    <property name="MergePhase" type="s" access="read"/>
    <property name="MergeFailure" type="s" access="read"/>
    <property name="LastError" type="s" access="read"/>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface" type="s" direction="in"/>
      <arg name="property" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface" type="s" direction="in"/>
      <arg name="property" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface" type="s"/>
      <arg name="changed" type="a{sv}"/>
      <arg name="invalidated" type="as"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect">
      <arg name="xml" type="s" direction="out"/>
    </method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
  </interface>
</node>
`
