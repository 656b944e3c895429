# shellcheck shell=sh disable=SC2034  # for whoever sources this, with "work" set
#
# classpath.sh - the distribution's archives, and what "install" has compiled
#
classpath=$work/classes
for jar in postgresql tomcat10-embed-core jakarta-annotation-api HikariCP slf4j-api slf4j-nop gson; do
	classpath=$classpath:/usr/share/java/$jar.jar
done
